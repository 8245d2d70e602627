"""Pages within the length that a host takes."""

from __future__ import annotations

from meteora_registry.registry.ci.pages import shorten, size_in_bytes

PAGE = "".join(
    f"<details><summary>{number}</summary>\n\ninner ü {number}\n\n</details>\n\n" for number in range(100)
)


def test_short_page_stays_as_it_is() -> None:
    assert shorten(PAGE, len(PAGE)) == PAGE


def test_shortened_page_fits_and_closes_what_it_opens() -> None:
    for limit in range(150, len(PAGE), 37):
        page = shorten(PAGE, limit)
        assert len(page) <= limit
        assert page.startswith("**This page is shortened;")
        assert page.count("<details>") == page.count("</details>")


def test_size_may_be_counted_in_bytes() -> None:
    assert size_in_bytes("ü") == 2
    assert size_in_bytes(shorten(PAGE, 1000, size=size_in_bytes)) <= 1000


def test_one_line_that_is_too_long_leaves_the_notice() -> None:
    page = shorten("x" * 10_000, 200)
    assert len(page) <= 200
    assert "shortened" in page
