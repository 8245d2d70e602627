"""Every output format: whole, valid, within the limits of its reader, and safe for it."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as SarifLog

from meteora_registry.inspection.report import FORMATS, Places, Setting, find_root, format_report
from meteora_registry.inspection.report.github import MAX_ANNOTATIONS
from meteora_registry.inspection.report.places import Region, find_keys
from meteora_registry.inspection.report.sarif import MAX_RESULTS
from meteora_registry.inspection.rules.all_rules import all_rules
from meteora_registry.schemas.finding import Effect, Finding, Place, Severity, Verdict
from meteora_registry.schemas.report import AdapterReport, Outcome, Purpose, Report, Selection
from support.junit_schema import check_junit


def finding(
    code: str, severity: Severity, effect: Effect = Effect.NONE, *, found: str = "`a|b`", **place: str
) -> Finding:
    return Finding(
        code=code,
        title="A title",
        severity=severity,
        effect=effect,
        place=Place(**place),
        found=found,
        expected="<b>100%</b>",
        why="@someone sees it",
        remedy="do, this: now",
    )


BROKEN = finding("MR111", Severity.REFUSE, Effect.BROKEN, file="adapter_config.json", field="r")
UNFUSABLE = finding(
    "MR121", Severity.REFUSE, Effect.NOT_FUSABLE, file="adapter_config.json", field="use_dora"
)
WARNING = finding("MR404", Severity.WARN, file="adapter_model.safetensors", tensor="x.lora_B.weight")
NOTE = finding("MR007", Severity.NOTE, file="adapter_model.bin")


def adapter(name: str, *findings: Finding, outcome: Outcome | None = None) -> AdapterReport:
    verdict = Verdict.of(findings)
    decided = outcome or (Outcome.ACCEPTED if verdict.sound else Outcome.REFUSED)
    return AdapterReport(name=name, outcome=decided, verdict=verdict, findings=findings)


def report_of(*adapters: AdapterReport, purpose: Purpose = Purpose.USE, **more: Any) -> Report:
    return Report(purpose=purpose, fail_on=Severity.REFUSE, adapters=adapters).model_copy(update=more)


def report(
    *findings: Finding, purpose: Purpose = Purpose.USE, name: str = "a,b:c\x1b[31m", **more: object
) -> Report:
    return report_of(adapter(name, *findings, outcome=Outcome.REFUSED), purpose=purpose, **more)


UNREADABLE = AdapterReport(
    name="gone", outcome=Outcome.UNREADABLE, verdict=None, findings=(), error="`gone` cannot be read"
)
LONG = "x" * 10_000
MARKUP = "</td></details>`**@team** #1 https://evil.example www.evil.example [a](b) $x$ ]]> \\|"
HOSTILE = {
    "markup": MARKUP,
    "control characters": "\x00\x1b]0;title\x07\r\n::error::fake\n\u202e\u2028\ufeff\ufffe",
    "workflow command": "::set-output name=a::b%0A::error::c",
    "long": LONG,
    "entities": "&lt;&#64;&quot;",
}
CASES = {
    "several": report(BROKEN, UNFUSABLE, WARNING),
    "none": report(),
    "no adapter": report_of(),
    "unreadable": report_of(UNREADABLE),
    "together": report(together=(finding("MR602", Severity.REFUSE, Effect.NOT_FUSABLE),)),
    **{f"name of {name}": report(BROKEN, WARNING, name=text) for name, text in HOSTILE.items()},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FORMATS)
def test_no_format_carries_a_control_character(name: str, case: str) -> None:
    text = format_report(CASES[case], name)
    assert all(line.isprintable() for line in text.split("\n"))
    assert "\u202e" not in text


@pytest.mark.parametrize("case", CASES)
def test_sarif_is_valid(case: str) -> None:
    log = sarif(CASES[case])
    SarifLog.model_validate(log)
    (run,) = log["runs"]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]


def sarif(given: Report, setting: Setting | None = None) -> Any:
    return json.loads(format_report(given, "sarif", setting))


def results_of(given: Report, setting: Setting | None = None) -> list[Any]:
    return list(sarif(given, setting)["runs"][0]["results"])


def place_of(result: Any) -> Any:
    return result["locations"][0]["physicalLocation"]


def test_sarif_level_follows_the_purpose() -> None:
    def levels(purpose: Purpose) -> list[str]:
        found = results_of(report(BROKEN, UNFUSABLE, WARNING, purpose=purpose))
        return [result["level"] for result in found]

    assert levels(Purpose.USE) == ["error", "warning", "note"]
    assert levels(Purpose.FUSE) == ["error", "error", "warning"]


# What GitHub documents for code scanning: a file of at most 10 MB when compressed, 5000 results shown,
# and of each result a region and a fingerprint; of each rule texts of at most 1024 characters and a help.
def test_sarif_stays_within_what_github_documents() -> None:
    places = [
        finding("MR111", Severity.REFUSE, Effect.BROKEN, file="adapter_config.json", field=f"{LONG[:500]}{i}")
        for i in range(MAX_RESULTS // 50 + 1)
    ]
    many = report_of(*(adapter(f"adapters/{number}", *places) for number in range(50)))
    text = format_report(many, "sarif", Setting(docs_url="https://example.org/rules.md"))
    (run,) = json.loads(text)["runs"]
    assert len(gzip.compress(text.encode())) < 10_000_000
    assert len(run["results"]) == MAX_RESULTS == 5000
    assert run["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"] == (
        "50 more results are not in this file"
    )
    for result in run["results"]:
        region = place_of(result)["region"]
        assert set(region) == {"startLine", "startColumn", "endLine", "endColumn"}
        assert min(region.values()) >= 1
        assert result["partialFingerprints"].keys() == {"primaryLocationLineHash"}
        assert len(result["locations"]) == 1


def test_rules_of_sarif_fit_and_link_to_their_sections() -> None:
    every = [finding(rule.code, rule.severity, rule.effect) for rule in all_rules()]
    log = sarif(report(*every), Setting(docs_url="https://example.org/rules.md"))
    page = Path(__file__).parents[2].joinpath("docs/rules.md").read_text(encoding="utf-8")
    anchors = {line[4:].lower().replace(" ", "-") for line in page.splitlines() if line.startswith("### ")}
    rules = log["runs"][0]["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.code for rule in all_rules()]
    for rule in rules:
        address, _, anchor = rule["helpUri"].partition("#")
        assert (address, anchor in anchors) == ("https://example.org/rules.md", True)
        assert len(rule["name"]) <= 255
        for part in ("shortDescription", "fullDescription", "help"):
            assert 0 < len(rule[part]["text"]) <= 1024


def test_rules_have_no_address_where_none_is_known() -> None:
    (rule,) = sarif(report(BROKEN))["runs"][0]["tool"]["driver"]["rules"]
    assert "helpUri" not in rule


def test_paths_are_relative_to_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "repo" / "adapters" / "a b", tmp_path / "elsewhere"
    inside.mkdir(parents=True)
    setting = Setting(Places(tmp_path / "repo"))

    def uri(name: str) -> Any:
        return place_of(results_of(report(BROKEN, name=name), setting)[0])["artifactLocation"]

    relative = {"uri": "adapters/a%20b/adapter_config.json", "uriBaseId": "%SRCROOT%"}
    assert uri(str(inside)) == relative
    monkeypatch.chdir(inside.parent)
    assert uri("a b") == uri("../adapters/./a b") == relative
    assert uri(str(outside)) == {"uri": f"file://{outside}/adapter_config.json"}
    assert uri(str(tmp_path / "repo"))["uri"] == "adapter_config.json"
    annotation = format_report(report(BROKEN, name="a b"), "github", setting)
    assert annotation.startswith("::error file=adapters/a b/adapter_config.json,title=")
    assert "<code>adapters/a b</code>" in format_report(report(BROKEN, name="a b"), "markdown", setting)
    assert format_report(report(BROKEN, name="a b"), "text", setting).startswith("a b: refused")


def test_root_is_the_nearest_folder_with_a_repository(tmp_path: Path) -> None:
    (tmp_path / "repo" / "deep").mkdir(parents=True)
    (tmp_path / "repo" / ".git").write_text("gitdir: elsewhere\n")
    assert find_root(tmp_path / "repo" / "deep") == tmp_path / "repo"


def test_key_of_a_config_has_its_line(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = (
        '{\r\n  "peft_type": "LORA",\r\n  "r": 0,\r\n  "rank_pattern": {\r\n    "a:\\"b{": 1\r\n  }\r\n}\r\n'
    )
    (folder / "adapter_config.json").write_bytes(config.encode())
    pattern = finding(
        "MR113", Severity.REFUSE, Effect.BROKEN, file="adapter_config.json", field='rank_pattern.a:"b{'
    )
    absent = finding("MR114", Severity.REFUSE, Effect.BROKEN, file="adapter_config.json", field="lora_alpha")
    given = report(BROKEN, pattern, absent, name=str(folder))
    regions = [place_of(result)["region"] for result in results_of(given)]
    assert [(each["startLine"], each["endLine"], each["endColumn"]) for each in regions] == [
        (3, 3, 10),
        (5, 5, 16),
        (1, 1, 1),
    ]
    assert [re.search(r"line=\d+", line) for line in format_report(given, "github").splitlines()][2] is None


def test_config_alone_is_the_place_of_its_findings(tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text('{\n"r": 0}')
    (result,) = results_of(report(BROKEN, name=str(config)), Setting(Places(tmp_path)))
    assert place_of(result)["artifactLocation"]["uri"] == "adapter_config.json"
    assert place_of(result)["region"]["startLine"] == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param('{"a": 1,\n"b": "c", "d": ["e", {"f": 1}]}', {"a": 1, "b": 2, "d": 2}, id="lists"),
        pytest.param('{"a": {"b": {"c": 1}},\n"b": 2}', {"a": 1, "a.b": 1, "b": 2}, id="depth"),
        pytest.param('{"\\u0061": {},\n"b\\"": []}', {"a": 1, 'b"': 2}, id="escapes"),
        pytest.param("[]", {}, id="no object"),
    ],
)
def test_keys_are_found_with_their_lines(text: str, expected: dict[str, int]) -> None:
    assert {key: region.line for key, region in find_keys(text).items()} == expected


@pytest.mark.parametrize("config", [b"{", b"\xff", b'{"r": 1, "r": 2}', b"[1]", b"{" * 100_000])
def test_config_that_cannot_be_read_has_no_lines(config: bytes, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_bytes(config)
    (result,) = results_of(report(BROKEN, name=str(tmp_path)))
    assert place_of(result)["region"]["startLine"] == Region().line == 1


@pytest.mark.parametrize("case", CASES)
def test_entries_of_gitlab_have_what_it_requires(case: str) -> None:
    found = json.loads(format_report(CASES[case], "gitlab"))
    for entry in found:
        assert set(entry) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert entry["severity"] in ("info", "minor", "critical", "blocker")
        assert entry["location"]["path"]
        assert entry["location"]["lines"]["begin"] >= 1
    assert len({entry["fingerprint"] for entry in found}) == len(found)


def test_entries_of_gitlab_have_the_lines_of_keys(tmp_path: Path) -> None:
    config = tmp_path / "adapter" / "adapter_config.json"
    config.parent.mkdir()
    config.write_text('{\n"r": 0}')
    given = report(BROKEN, name=str(config.parent))
    (entry,) = json.loads(format_report(given, "gitlab", Setting(Places(tmp_path))))
    text = "found `a|b`, expected <b>100%</b>; do, this: now"
    assert entry["description"] == f"A title (adapter_config.json: r): {text}"
    assert results_of(given)[0]["message"]["text"] == f"A title: {text}"
    assert entry["location"] == {"path": "adapter/adapter_config.json", "lines": {"begin": 2}}
    assert (entry["check_name"], entry["severity"]) == ("MR111", "critical")


def test_fingerprint_outlives_other_numbers_and_tensors() -> None:
    def prints(*findings: Finding) -> list[str]:
        return [
            each["partialFingerprints"]["primaryLocationLineHash"] for each in results_of(report(*findings))
        ]

    other = finding("MR404", Severity.WARN, file="adapter_model.safetensors", tensor="y", found="`3`")
    assert prints(WARNING) == prints(other)
    twice = prints(WARNING, other)
    assert twice[0].removesuffix(":1") == twice[1].removesuffix(":2")
    assert len(set(prints(BROKEN, UNFUSABLE, WARNING))) == 3
    elsewhere = results_of(report(WARNING, name="b"))[0]["partialFingerprints"]
    assert elsewhere["primaryLocationLineHash"] not in twice


@pytest.mark.parametrize("case", CASES)
def test_junit_is_valid(case: str) -> None:
    check_junit(format_report(CASES[case], "junit"))


def test_junit_counts_failures() -> None:
    root = ElementTree.fromstring(format_report(report(BROKEN, UNFUSABLE, WARNING), "junit"))
    suite = root[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "0")
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("4", "1", "0")
    assert suite.get("name") == "a,b:c\\x1b[31m"
    broken = ElementTree.fromstring(format_report(CASES["unreadable"], "junit"))[0]
    assert broken.get("errors") == "1"


def test_junit_names_stay_when_the_outcome_changes() -> None:
    def names(outcome: Outcome, *findings: Finding) -> list[str | None]:
        given = report_of(adapter("a", *findings, outcome=outcome))
        return [case.get("name") for case in ElementTree.fromstring(format_report(given, "junit"))[0]]

    assert names(Outcome.ACCEPTED) == names(Outcome.REFUSED) == names(Outcome.INCONCLUSIVE) == ["inspection"]
    other = finding("MR404", Severity.WARN, file="adapter_model.safetensors", tensor="x.lora_B.weight")
    assert names(Outcome.ACCEPTED, WARNING, other) == [
        "inspection",
        "MR404 A title (adapter_model.safetensors: x.lora_B.weight)",
        "MR404 A title (adapter_model.safetensors: x.lora_B.weight) 2",
    ]


def test_total_and_the_refused_come_first() -> None:
    given = report_of(
        adapter("fine"), adapter("noted", NOTE), UNREADABLE, adapter("bad", BROKEN), adapter("worse", BROKEN)
    )
    markdown = format_report(given, "markdown")
    assert markdown.startswith("### 5 adapters: 2 refused, 1 unreadable, 2 accepted\n")
    names = re.findall(r"<summary><code>(\w+)</code>", markdown)
    assert names == ["bad", "worse", "gone", "noted"]
    assert "Without findings: `fine`." in markdown


def test_a_rule_and_a_reason_are_one_line_with_count_and_example() -> None:
    others = [adapter(f"other{number}", WARNING) for number in range(3)]
    elsewhere = finding(
        "MR111", Severity.REFUSE, Effect.BROKEN, file="adapter_config.json", field="lora_alpha"
    )
    given = report_of(*others, adapter("bad", BROKEN, elsewhere), adapter("worse", BROKEN))
    table = format_report(given, "markdown").split("\n\n")[1].splitlines()[2:]
    expected = "A title | {} | `{}`: found <code>a&#124;b</code>, expected \\<b\\>100%\\</b\\> |"
    assert table == [
        "| **error** | MR111 | " + expected.format(2, "bad"),
        "| **error** | MR111 | " + expected.format(1, "bad"),
        "| warning | MR404 | " + expected.format(3, "other0"),
    ]
    last = format_report(given, "text").splitlines()[-4:]
    assert last == [
        "MR111 refuse: A title: bad and 1 more",
        "MR111 refuse: A title: bad",
        "MR404 warn: A title: other0 and 2 more",
        "5 adapters: 2 refused, 3 accepted",
    ]


def test_markdown_fits_a_comment_and_counts_what_does_not() -> None:
    given = report_of(*(adapter(f"adapters/{number}", BROKEN, UNFUSABLE) for number in range(300)))
    text = format_report(given, "markdown")
    assert len(text) <= 65_536
    kept = text.count("<details>")
    assert text.count("</details>") == kept > 50
    assert text.endswith(
        f"\n{300 - kept} more adapters with findings do not fit here: see the whole report.\n"
    )


@pytest.mark.parametrize("name", ["text", "markdown", "html"])
def test_what_a_baseline_and_a_selection_left_out_is_counted(name: str) -> None:
    known = adapter("old").model_copy(update={"known": (BROKEN, WARNING)})
    selection = Selection(commit="c" * 40, unchanged=97, removed=("gone",))
    given = report_of(known, selection=selection, known_together=(WARNING,), not_asked=("a base",))
    text = re.sub(r"</?code>|`", "", format_report(given, name))
    for remark in (
        "2 findings of the baseline, not counted",
        "adapters that changed since the commit cccccccccccc; 97 unchanged, 1 removed",
        "1 finding of the baseline against fusing, not counted",
        "not checked: a base",
    ):
        assert remark in text


def test_markdown_links_rules_to_their_sections() -> None:
    text = format_report(report(BROKEN), "markdown", Setting(docs_url="https://example.org/rules.md"))
    assert "| [MR111](https://example.org/rules.md#mr111-rank-is-unusable) |" in text


def test_markdown_escapes_what_would_be_markup() -> None:
    text = format_report(report(BROKEN), "markdown")
    assert "\\<b\\>100%\\</b\\>" in text
    assert "<code>a&#124;b</code>" in text
    assert "<b>" not in text


@pytest.mark.parametrize("name", HOSTILE)
def test_names_leave_the_structure_of_markdown_alone(name: str) -> None:
    hostile = finding(
        "MR111",
        Severity.REFUSE,
        Effect.BROKEN,
        file="adapter_config.json",
        field=HOSTILE[name].replace("`", "'"),
    )
    text = format_report(report(hostile, BROKEN, name=HOSTILE[name]), "markdown")
    cells = [re.sub(r"`[^`]*`", "", line).count("|") for line in text.split("\n") if line.startswith("|")]
    assert set(cells) == {6}
    assert text.count("<details>") == text.count("</details>") == 1
    outside = re.sub(r"`[^`\n]*`|<code>[^\n]*?</code>", "", text)
    assert not re.search(r"@\w|#\d|https?://|www\.|evil", outside)


def test_mentions_and_links_outside_of_code_are_broken_up() -> None:
    wild = BROKEN.model_copy(
        update={"remedy": "ask @team about #12 at https://evil.example or www.evil.example"}
    )
    text = format_report(report(wild), "markdown")
    assert (
        "ask @<!-- -->team about #<!-- -->12 at https:<!-- -->//evil.example or www<!-- -->.evil.example"
        in text
    )


def test_github_commands_are_escaped() -> None:
    assert format_report(report(BROKEN), "github") == (
        "::error file=a%2Cb%3Ac\\x1b[31m/adapter_config.json,title=MR111 A title::"
        "r: found `a|b`, expected <b>100%25</b>; do, this: now\n"
    )


@pytest.mark.parametrize("case", CASES)
def test_github_lines_are_commands_of_three_kinds(case: str) -> None:
    for line in format_report(CASES[case], "github").splitlines():
        assert re.fullmatch(r"::(error|warning|notice) (file=[^,]*,)?(line=\d+,)?title=[^,:]*::.*", line)


def test_annotations_are_the_worst_ten_of_each_kind_and_count_the_rest() -> None:
    findings = (BROKEN, WARNING, NOTE)
    given = report_of(*(adapter(f"a{number}", *findings) for number in range(14)), adapter("b", UNFUSABLE))
    given = given.model_copy(update={"purpose": Purpose.FUSE})
    lines = format_report(given, "github").splitlines()
    for kind, rest in (("error", 5), ("warning", 4), ("notice", 4)):
        own = [line for line in lines if line.startswith(f"::{kind} ")]
        assert len(own) == MAX_ANNOTATIONS == 10
        assert own[-1].endswith(f" ({rest} more: see the report)")
    # One of every issue comes before the second of any.
    assert [re.search(r"title=(MR\d+)", line)[1] for line in lines[:3]] == ["MR111", "MR121", "MR111"]  # type: ignore[index]


def test_text_is_what_people_read() -> None:
    text = format_report(report(BROKEN, name="adapter"), "text")
    assert text == (
        "adapter: refused (broken, not fusable)\n"
        "  MR111 refuse: A title (adapter_config.json: r)\n"
        "    found `a|b`, expected <b>100%</b>\n"
        "    @someone sees it; do, this: now\n"
    )


def test_json_is_the_document() -> None:
    whole = CASES["several"]
    assert Report.from_bytes(format_report(whole, "json").encode(), what="report") == whole


def texts_of(page: str) -> Iterator[str]:
    for each in re.finditer(r">([^<]+)<", page):
        yield each[1]


@pytest.mark.parametrize("case", CASES)
def test_html_has_no_script_and_names_nothing_outside(case: str) -> None:
    page = format_report(CASES[case], "html")
    assert not re.search(r"<script|<img|<link|<iframe|<form| src=| href=| on\w+=|url\(|@import", page)
    assert re.search(
        r"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-[^' ]{44}'; "
        r"base-uri 'none'; form-action 'none'\"",
        page,
    )
    assert page.count("<details") == page.count("</details>") == len(re.findall("<summary>", page))
