"""The page of a report, in a real browser: what it shows and folds, and what it never does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meteora_registry.inspection.report import format_report
from meteora_registry.schemas.finding import Effect, Finding, Place, Severity, Verdict
from meteora_registry.schemas.report import AdapterReport, Outcome, Purpose, Report
from support.browser import needs_browser, open_browser

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

HOSTILE = "</code></style><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
LONG = "x" * 500


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def finding(severity: Severity, effect: Effect, field: str) -> Finding:
    return Finding(
        code="MR112" if severity is Severity.REFUSE else "MR141",
        title="A `lora_alpha` is missing",
        severity=severity,
        effect=effect,
        place=Place(file="adapter_config.json", field=field),
        found=f"`{field[:100]}`",
        expected="a number",
        why="the result is a guess",
        remedy="write the alpha",
    )


def adapter(name: str, outcome: Outcome, *findings: Finding) -> AdapterReport:
    return AdapterReport(name=name, outcome=outcome, verdict=Verdict.of(findings), findings=findings)


def open_page(browser: Chrome, folder: Path, *adapters: AdapterReport) -> None:
    report = Report(purpose=Purpose.USE, fail_on=Severity.REFUSE, adapters=adapters)
    page = folder / "report.html"
    page.write_text(format_report(report, "html"), encoding="utf-8")
    browser.get(page.as_uri())
    assert list(browser.get_log("browser")) == []


def run(browser: Chrome, script: str) -> Any:
    return browser.execute_script(f"return {script}")


REFUSED = adapter("bad", Outcome.REFUSED, finding(Severity.REFUSE, Effect.BROKEN, "lora_alpha"))
NAMELESS = adapter("nameless", Outcome.ACCEPTED, finding(Severity.WARN, Effect.NONE, "base"))


@needs_browser
def test_page_opens_with_the_total_the_issues_and_the_refused(browser: Chrome, tmp_path: Path) -> None:
    open_page(browser, tmp_path, adapter("fine", Outcome.ACCEPTED), NAMELESS, REFUSED)
    assert run(browser, "document.querySelector('.total').innerText") == "3 adapters: 1 refused, 2 accepted"
    rows = run(
        browser,
        "[...document.querySelector('table').tBodies[0].rows]"
        ".map(row => [...row.cells].map(cell => cell.innerText))",
    )
    assert rows == [
        ["error", "MR112", "A lora_alpha is missing", "1", "bad: found lora_alpha, expected a number"],
        ["warning", "MR141", "A lora_alpha is missing", "1", "nameless: found base, expected a number"],
    ]
    folds = run(
        browser,
        "[...document.querySelectorAll('details')].map(e => [e.querySelector('code').innerText, e.open])",
    )
    assert folds == [["bad", True], ["nameless", False]]
    assert run(browser, "[...document.querySelectorAll('li')].map(e => e.innerText)") == ["fine"]


@needs_browser
def test_hostile_names_are_text_alone(browser: Chrome, tmp_path: Path) -> None:
    open_page(
        browser,
        tmp_path,
        adapter(HOSTILE, Outcome.REFUSED, finding(Severity.REFUSE, Effect.BROKEN, HOSTILE)),
    )
    assert run(browser, "document.title") == "Adapter validation"
    assert run(browser, "document.querySelectorAll('script, img').length") == 0
    assert run(browser, "document.querySelector('summary code').textContent") == HOSTILE


@needs_browser
@pytest.mark.parametrize("width", [400, 1200])
def test_long_names_do_not_widen_the_page(browser: Chrome, tmp_path: Path, width: int) -> None:
    browser.set_window_size(width, 900)
    long = finding(Severity.REFUSE, Effect.BROKEN, LONG)
    open_page(browser, tmp_path, adapter(LONG * 8, Outcome.REFUSED, long))
    assert run(browser, "document.documentElement.scrollWidth <= window.innerWidth")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_follows_the_colours_of_the_reader(browser: Chrome, tmp_path: Path, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    open_page(browser, tmp_path, REFUSED)
    colour = run(browser, "getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]
