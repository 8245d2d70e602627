"""The minimum rate of an answer."""

from __future__ import annotations

import pytest

from meteora_registry.registry.hub.rate import (
    MIN_BYTES_PER_SECOND,
    WINDOW_SECONDS,
    AnswerTooSlow,
    RateMeter,
)

WINDOW_BYTES = int(MIN_BYTES_PER_SECOND * WINDOW_SECONDS)


def test_rate_at_the_minimum_is_accepted_and_below_it_refused() -> None:
    RateMeter().add(WINDOW_SECONDS, WINDOW_BYTES)
    with pytest.raises(AnswerTooSlow, match=r"less than 4096 bytes a second over 30 seconds"):
        RateMeter().add(WINDOW_SECONDS, WINDOW_BYTES - 1)


def test_rate_is_an_average_so_that_a_stall_is_accepted() -> None:
    meter = RateMeter()
    meter.add(WINDOW_SECONDS - 1, 1)
    meter.add(1, WINDOW_BYTES)


def test_rate_of_a_fast_start_does_not_excuse_a_slow_rest() -> None:
    meter = RateMeter()
    meter.add(WINDOW_SECONDS, 1000 * WINDOW_BYTES)
    with pytest.raises(AnswerTooSlow):
        meter.add(WINDOW_SECONDS, 1)


def test_rate_is_not_judged_before_the_window_is_over() -> None:
    RateMeter().add(WINDOW_SECONDS - 0.1, 1)
