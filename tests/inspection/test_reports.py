"""Every output format: whole, valid, and safe for its next reader."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as SarifLog

from meteora_registry.inspection.report import FORMATS
from meteora_registry.inspection.rules import all_rules  # noqa: F401 - registers the rules
from meteora_registry.schemas.finding import Effect, Finding, Place, Severity, Verdict
from meteora_registry.schemas.report import AdapterReport, Outcome, Purpose, Report


def finding(code: str, severity: Severity, effect: Effect = Effect.NONE, **place: str) -> Finding:
    return Finding(
        code=code,
        title="A title",
        severity=severity,
        effect=effect,
        place=Place(**place),
        found="`a|b`",
        expected="<b>100%</b>",
        why="@someone sees it",
        remedy="do, this: now",
    )


BROKEN = finding("MR111", Severity.REFUSE, Effect.BROKEN, file="adapter_config.json", field="r")
UNFUSABLE = finding(
    "MR121", Severity.REFUSE, Effect.NOT_FUSABLE, file="adapter_config.json", field="use_dora"
)
WARNING = finding("MR404", Severity.WARN, file="adapter_model.safetensors", tensor="x.lora_B.weight")


def report(
    *findings: Finding, purpose: Purpose = Purpose.USE, name: str = "a,b:c\x1b[31m", **more: object
) -> Report:
    adapter = AdapterReport(
        name=name, outcome=Outcome.REFUSED, verdict=Verdict.of(findings), findings=findings
    )
    return Report(purpose=purpose, fail_on=Severity.REFUSE, adapters=(adapter,)).model_copy(update=more)


UNREADABLE = AdapterReport(
    name="gone", outcome=Outcome.UNREADABLE, verdict=None, findings=(), error="`gone` cannot be read"
)
CASES = {
    "several": report(BROKEN, UNFUSABLE, WARNING),
    "none": report(),
    "unreadable": Report(purpose=Purpose.USE, fail_on=Severity.REFUSE, adapters=(UNREADABLE,)),
    "together": report(together=(finding("MR602", Severity.REFUSE, Effect.NOT_FUSABLE),)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FORMATS)
def test_no_format_carries_a_control_character(name: str, case: str) -> None:
    text = FORMATS[name](CASES[case])
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_sarif_is_valid(case: str) -> None:
    log = json.loads(FORMATS["sarif"](CASES[case]))
    SarifLog.model_validate(log)
    (run,) = log["runs"]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


def test_sarif_level_follows_the_purpose() -> None:
    def levels(purpose: Purpose) -> list[str]:
        log = json.loads(FORMATS["sarif"](report(BROKEN, UNFUSABLE, WARNING, purpose=purpose)))
        return [result["level"] for result in log["runs"][0]["results"]]

    assert levels(Purpose.USE) == ["error", "note", "warning"]
    assert levels(Purpose.FUSE) == ["error", "error", "warning"]


def test_junit_counts_failures() -> None:
    suite = ElementTree.fromstring(FORMATS["junit"](report(BROKEN, UNFUSABLE, WARNING)))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "0")
    assert suite.get("name") == "a,b:c\\x1b[31m"
    broken = ElementTree.fromstring(FORMATS["junit"](CASES["unreadable"]))[0]
    assert broken.get("errors") == "1"


def test_markdown_escapes_what_would_be_markup() -> None:
    text = FORMATS["markdown"](report(BROKEN))
    assert "\\<b\\>100%\\</b\\>" in text
    assert "`a\\|b`" in text
    assert "<b>" not in text


def test_github_commands_are_escaped() -> None:
    assert FORMATS["github"](report(BROKEN)) == (
        "::error file=a%2Cb%3Ac\\x1b[31m/adapter_config.json,title=MR111 A title::"
        "r: found `a|b`, expected <b>100%25</b>; do, this: now\n"
    )


def test_text_is_what_people_read() -> None:
    text = FORMATS["text"](report(BROKEN, name="adapter"))
    assert text == (
        "adapter: refused (broken, not fusable)\n"
        "  MR111 refuse: A title (adapter_config.json: r)\n"
        "    found `a|b`, expected <b>100%</b>\n"
        "    @someone sees it; do, this: now\n"
    )


def test_json_is_the_document() -> None:
    whole = CASES["several"]
    assert Report.from_bytes(FORMATS["json"](whole).encode(), what="report") == whole
