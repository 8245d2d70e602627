"""The command ``validate``: what it prints, and which exit code follows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic_sarif.model import StaticAnalysisResultsFormatSarifVersion210JsonSchema as SarifLog
from safetensors.numpy import save_file

from meteora_registry.inspection.report import FORMATS
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.schemas.bundle import WEIGHTS_FILE
from meteora_registry.schemas.report import Report
from support.junit_schema import check_junit
from support.small_adapters import make_adapter


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "good")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "broken", lora_alpha=0)


@pytest.fixture
def unfusable(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "unfusable", bias="all")


def read_report(text: str) -> Report:
    return Report.from_bytes(text.encode(), what="report")


def test_exit_codes_follow_the_purpose(good: Path, broken: Path, unfusable: Path, home: Home) -> None:
    assert run(["validate", str(good)]) == 0
    assert run(["validate", str(broken)]) == 1
    assert run(["validate", str(unfusable)]) == 0
    assert run(["validate", str(unfusable), "--for", "fuse"]) == 1


def test_text_names_finding_and_way_out(broken: Path, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    run(["validate", str(broken)])
    assert capsys.readouterr().out == (
        f"{broken}: refused (broken, not fusable)\n"
        "  MR112 refuse: `lora_alpha` is missing or not a number other than zero "
        "(adapter_config.json: lora_alpha)\n"
        "    found `0`, expected a number other than zero\n"
        "    without rank and alpha every result is scaled by a guess; PEFT silently takes 8 where alpha is "
        "missing; write the alpha that the adapter was trained with, a number other than zero\n"
        "not checked: modules and shapes against the base (`--base FOLDER`)\n"
    )


def test_warnings_refuse_when_asked(tmp_path: Path, home: Home) -> None:
    nameless = make_adapter(tmp_path / "nameless", base=None)
    assert run(["validate", str(nameless)]) == 0
    assert run(["validate", str(nameless), "--fail-on", "warn"]) == 1


def test_tree_is_walked_and_summed_up(
    good: Path, broken: Path, unfusable: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(good.parent), "--jobs", "3", "--format", "json"]) == 1
    report = read_report(capsys.readouterr().out)
    assert [Path(each.name).name for each in report.adapters] == ["broken", "good", "unfusable"]
    run(["validate", str(good.parent)])
    assert capsys.readouterr().out.splitlines()[-1] == "3 adapters: 1 refused, 2 accepted"


def test_list_names_the_adapters(good: Path, broken: Path, tmp_path: Path, home: Home) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"{good}\n\n{good}\n")
    assert run(["validate", "--list", str(listing)]) == 0
    listing.write_text(f"{good}\n{broken}\n")
    assert run(["validate", "--list", str(listing)]) == 1


def test_config_alone_is_inconclusive(
    good: Path, broken: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (good, broken):
        (folder / WEIGHTS_FILE).unlink()
    assert run(["validate", str(good / "adapter_config.json"), "--format", "json"]) == 3
    assert read_report(capsys.readouterr().out).adapters[0].unchecked == (
        "the weights: only the config was given",
    )
    assert run(["validate", str(broken / "adapter_config.json")]) == 1


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_file_of_a_whole_adapter_means_its_folder(
    good: Path, home: Home, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(["validate", str(good / name), "--format", "json"]) == 0
    assert read_report(capsys.readouterr().out).adapters[0].name == str(good)


def test_what_is_not_there_is_a_matter_of_usage(
    tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err == f"error: `{tmp_path / 'absent'}` does not exist\n"
    assert run(["validate"]) == 2
    assert capsys.readouterr().err == (
        "error: no adapter was named\nhint: such as `meteora-registry validate ./adapter`\n"
    )


def test_companions_from_folder_and_catalog(
    good: Path, tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_adapter(tmp_path / "other", base="org/elsewhere", seed=1)
    assert run(["add", str(other)]) == 0
    capsys.readouterr()
    for source in (str(other), "other"):
        assert run(["validate", str(good), "--for", "fuse", "--with", source, "--format", "json"]) == 1
        (found,) = read_report(capsys.readouterr().out).together
        assert found.code == "MR602"
    assert run(["validate", str(good), "--with", "hf://org/name"]) == 2


def test_members_of_a_bundle_are_companions(
    good: Path, tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [make_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"), start=1)]
    assert run(["add", *map(str, others)]) == 0
    assert run(["fuse", "one", "two", "--out", str(tmp_path / "bundle")]) == 0
    assert run(["validate", str(good), "--for", "fuse", "--with", str(tmp_path / "bundle")]) == 0
    capsys.readouterr()
    wider = make_adapter(tmp_path / "wider", base="org/elsewhere")
    run(["validate", str(wider), "--with", str(tmp_path / "bundle"), "--format", "json"])
    (found,) = read_report(capsys.readouterr().out).together
    assert found.found == "`org/base` in `bundle:one`, `bundle:two`; `org/elsewhere` in " + f"`{wider}`"


def test_policy_refuses_and_a_lax_one_is_refused(
    good: Path, tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("meteora_policy = 1\nmax_rank = 2\n")
    assert run(["validate", str(good), "--policy", str(policy)]) == 1
    policy.write_text('meteora_policy = 1\n[severity]\nMR401 = "off"\n')
    capsys.readouterr()
    assert run(["validate", str(good), "--policy", str(policy)]) == 1
    assert "protects the result and stays as it is" in capsys.readouterr().err


def test_rules_explain_themselves(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "--explain", "mr404"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("MR404 adapter-is-untrained\nEvery product B A is zero.\n")
    assert "severity: warn, a policy may change it\n" in shown
    assert run(["validate", "--explain", "all"]) == 0
    assert "MR401 refuse: A tensor holds NaN or infinity\n" in capsys.readouterr().out
    assert run(["validate", "--explain", "MR999"]) == 2


def test_paths_in_reports_begin_at_the_repository(
    broken: Path,
    tmp_path: Path,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(broken)
    assert run(["validate", ".", "--format", "github"]) == 1
    assert capsys.readouterr().out.startswith("::error file=broken/adapter_config.json,line=1,title=MR112 ")
    assert run(["validate", ".", "--format", "github", "--relative-to", str(broken)]) == 1
    assert capsys.readouterr().out.startswith("::error file=adapter_config.json,line=1,title=MR112 ")


def test_rules_link_to_their_page(broken: Path, home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    link = "https://example.org/rules.md#mr112-alpha-is-unusable"
    for name in ("sarif", "markdown"):
        assert run(["validate", str(broken), "--format", name, "--docs-url", link.partition("#")[0]]) == 1
        assert link in capsys.readouterr().out
    assert run(["validate", str(broken), "--docs-url", "javascript:alert(1)"]) == 2
    assert capsys.readouterr().err.startswith("error: `--docs-url` is `javascript:alert(1)`, expected ")


@pytest.mark.parametrize("name", FORMATS)
def test_no_report_shows_the_password_of_a_url(
    name: str, tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_adapter(tmp_path / "adapter", base="https://user:hunter22@host/mo|del")
    run(["validate", str(folder), "--format", name])
    assert "hunter22" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sarif", "junit", "markdown", "github", "html"])
def test_other_formats_go_to_stdout(
    name: str, broken: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["validate", str(broken), "--format", name]) == 1
    assert "MR112" in capsys.readouterr().out


def test_validating_needs_no_torch(good: Path, home: Home) -> None:
    script = (
        "import sys; from meteora_registry.registry.cli.main import run; "
        f"code = run(['validate', {str(good)!r}, '--deep', '--format', 'sarif']); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["version"] == "2.1.0"


NAMES = {
    "markup": "</td></details>`**@team** #1 https://evil.example www.evil.example [a](b) ]]>\\|",
    "control characters": "\x1b]0;title\x07\r\n::error::fake\n\u202e\u2028",
    "long": "x" * 10_000,
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_tensors_and_keys_break_no_format(
    name: str, tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    text = NAMES[name]
    (tmp_path / "adapters").mkdir()
    folder = make_adapter(
        tmp_path / "adapters" / "hostile",
        alpha_pattern={text: 0},
        base=text,
        unknown=text,
        target_modules=[text],
    )
    header = {f"{text}.lora_A.weight": np.zeros((4, 8), "float32"), text: np.ones(3, "float32")}
    save_file(header, folder / WEIGHTS_FILE, {"format": "pt"})
    found = {}
    for output_format in FORMATS:
        assert run(["validate", str(folder), "--format", output_format]) == 1
        found[output_format] = capsys.readouterr().out
        assert all(line.isprintable() for line in found[output_format].split("\n"))
    check_junit(found["junit"])
    SarifLog.model_validate(json.loads(found["sarif"]))
    lines = found["github"].splitlines()
    assert all(
        re.match(r"::(error|warning|notice) file=[^,]*,(line=1,)?title=MR\d+ [^,:]*::", line)
        for line in lines
    )
    rows = [line for line in found["markdown"].split("\n") if line.startswith("|")]
    assert {re.sub(r"`[^`]*`", "", row).count("|") for row in rows} == {6}
    page = found["html"]
    assert page.count("<details") == page.count("</details>") == 1
    assert len(found["markdown"]) < 65_536
