from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from meteora_registry.files.progress import UNCOUNTED, Step


def test_the_parts_of_a_step_add_up_to_how_far_it_is() -> None:
    reported: list[tuple[str, int, int]] = []
    step = Step("hashing", 10, lambda *each: reported.append(each))
    step.advance(4)
    step.advance(5)
    step.advance()
    assert reported == [("hashing", 4, 10), ("hashing", 9, 10), ("hashing", 10, 10)]


def test_threads_that_advance_one_step_report_every_part_once_and_in_order() -> None:
    reported: list[int] = []
    step = Step("reading", 800, lambda _step, done, _total: reported.append(done))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(lambda: [step.advance() for _ in range(100)])
    assert reported == list(range(1, 801))


def test_progress_that_is_not_asked_for_costs_the_caller_nothing() -> None:
    UNCOUNTED.advance(3)
    Step("writing", 3).advance()
