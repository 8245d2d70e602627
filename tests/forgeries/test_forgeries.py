"""Every forgery, put to the five ways of using a bundle: each gives the answer of its committed row."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.forging.answers import WAYS, Workshop, workshop
from support.forging.catalogue import FORGERIES
from support.forging.rows import read_rows

ROWS = read_rows()
# Those that one check alone finds, and every eighth of the rest.
SAMPLE = {*list(FORGERIES)[::8]} | {
    "config-with-mark",
    "record-backend-unknown",
    "cast-error-made-up",
    "factors-poisoned",
    "factors-poisoned-in-a-cast",
    "factors-of-another-layer",
    "gate-rows-exchanged",
    "initialisation-other",
    "card-edited",
    "signature-beside",
    "untouched",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """A home with sound bundles, a Hub, and a model."""
    with workshop(tmp_path_factory.mktemp("workshop")) as made:
        yield made


def test_every_forgery_has_a_row_with_a_reason() -> None:
    assert list(ROWS) == list(FORGERIES)
    assert [name for name, row in ROWS.items() if not row["why"] or set(row["answers"]) != set(WAYS)] == []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        is_whole = metafunc.config.getoption("--matrix") == "whole"
        metafunc.parametrize("name", [name for name in FORGERIES if is_whole or name in SAMPLE])


def test_forgery_is_answered_as_its_row_says(made: Workshop, name: str) -> None:
    row = made.row(name)
    assert row == {key: found for key, found in ROWS[name].items() if key != "why"}
