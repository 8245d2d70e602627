"""The action's check on pull requests, as a runner starts it, beside a real API on loopback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from meteora_registry.files.digests import hash_file
from support.ci_jobs import ACTION, Runner, check, check_in_bash
from support.github_api import BOT, READER, WRITER, Api
from support.repositories import GitRepository
from support.small_adapters import make_adapter


def test_good_adapter_is_accepted_and_explained(machine: Runner, team: GitRepository, api: Api) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9)
    team.commit()
    done = check_in_bash(machine, team, api, policy="policy.toml")
    assert done.code == 0, done.err
    assert done.outputs["outcome"] == "accepted"
    assert json.loads(Path(done.outputs["sarif"]).read_text())["version"] == "2.1.0"
    assert [each["name"] for each in done.report["adapters"]] == ["adapters/new"]
    (comment,) = api.bodies()
    assert comment.startswith("<!-- meteora-registry validate adapters -->\n")
    for page in (comment, done.summary):
        assert "adapters/new" in page
        assert "; 3 unchanged" in page
        assert (
            f"From the base revision `{team.git('rev-parse', 'main')[:12]}`, not from here: policy." in page
        )
    assert [name for name, _ in done.commands if name == "error"] == []


def test_broken_adapter_is_refused_with_an_annotation(machine: Runner, team: GitRepository, api: Api) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9, lora_alpha=0)
    team.commit()
    done = check(machine, team, api)
    assert done.code == 1
    assert done.outputs["outcome"] == "refused"
    (error,) = [text for name, text in done.commands if name == "error"]
    assert "file=adapters/new/adapter_config.json" in error
    assert "MR112" in done.summary
    assert "MR112" in api.bodies()[0]


def test_one_comment_is_kept_up_to_date(machine: Runner, team: GitRepository, api: Api) -> None:
    for number in range(150):
        api.write(f"an ordinary remark {number}", author="reviewer")
    make_adapter(team.folder / "adapters" / "new", seed=9, lora_alpha=0)
    team.commit()
    assert check(machine, team, api).code == 1
    for _ in range(2):
        assert check(machine, team, api).code == 1
    assert [method for method, _ in api.requests if method != "GET"] == ["POST"]
    make_adapter(team.folder / "adapters" / "new", seed=9)
    team.commit()
    assert check(machine, team, api).code == 0
    assert [method for method, _ in api.requests if method != "GET"] == ["POST", "PATCH"]
    (comment,) = api.bodies()
    assert "MR112" not in comment
    team.git("rm", "-r", "--quiet", "adapters/new")
    team.commit()
    assert check(machine, team, api).code == 0
    assert "adapters/new" not in api.bodies()[0]


def test_nothing_is_written_where_nothing_changed(machine: Runner, team: GitRepository, api: Api) -> None:
    (team.folder / "README.md").write_text("words")
    team.commit()
    done = check(machine, team, api)
    assert done.code == 0
    assert "; 3 unchanged" in done.summary
    assert api.bodies() == []


def test_comment_of_another_account_is_never_touched(machine: Runner, team: GitRepository, api: Api) -> None:
    mark = "<!-- meteora-registry validate adapters -->\nmine"
    api.write(mark, author="stranger")
    make_adapter(team.folder / "adapters" / "new", seed=9)
    team.commit()
    assert check(machine, team, api).code == 0
    assert api.bodies("stranger") == [mark]
    assert len(api.bodies(BOT)) == 1


@pytest.mark.parametrize(
    ("token", "remark"),
    [
        (READER, "note: the token may not comment here; the job's summary has everything"),
        ("ghs_unknown", "note: the token may not comment here; the job's summary has everything"),
        ("", None),
    ],
    ids=["may only read", "unknown", "none"],
)
def test_token_that_may_not_write_leaves_the_summary(
    machine: Runner, team: GitRepository, api: Api, token: str, remark: str | None
) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9, lora_alpha=0)
    team.commit()
    done = check(machine, team, api, token=token)
    assert done.code == 1
    assert "MR112" in done.summary
    assert api.bodies() == []
    assert remark in done.err if remark else "comment" not in done.err
    assert not token or token not in done.out + done.err + done.summary


def test_pull_request_that_lets_its_own_adapter_through_is_refused(
    machine: Runner, team: GitRepository, api: Api
) -> None:
    """Policy, baseline and lock of the pull request accept its adapter; those of the base are used."""
    hostile = make_adapter(team.folder / "adapters" / "hostile", seed=9, lora_alpha=0, base="evil/base")
    known = [
        {
            "code": "MR112",
            "file": "adapter_config.json",
            "tensor": None,
            "field": "lora_alpha",
            "found": "`0`",
        }
    ]
    (team.folder / "policy.toml").write_text('meteora_policy = 1\nallowed_bases = ["evil/base"]\n')
    (team.folder / "known.json").write_text(
        json.dumps({"meteora_baseline": 1, "adapters": {"adapters/hostile": known}})
    )
    entry = {
        "files": {path.name: hash_file(path) for path in hostile.iterdir()},
        "verdict": {"sound": True, "fusable": True},
        "base": "evil/base",
        "base_commit": None,
    }
    (team.folder / "adapters.lock").write_text(
        json.dumps({"meteora_lock": 1, "adapters": {"adapters/hostile": entry}})
    )
    team.commit()
    settings = {"policy": "policy.toml", "baseline": "known.json", "lock": "adapters.lock"}
    done = check(machine, team, api, **settings)
    assert done.code == 1
    # A change of any of the three has every adapter checked.
    assert len(done.report["adapters"]) == 4
    (judged,) = [each for each in done.report["adapters"] if each["name"] == "adapters/hostile"]
    assert judged["known"] == []
    assert {each["code"] for each in judged["findings"]} >= {"MR112", "MR701", "MR707"}
    # With its own files it would pass.
    team.git("checkout", "--quiet", "-B", "main")
    team.git("checkout", "--quiet", "-B", "feature")
    (team.folder / "adapters" / "hostile" / "README.md").write_text("")
    team.commit()
    done = check(machine, team, api, policy="policy.toml", baseline="known.json")
    assert [each["outcome"] for each in done.report["adapters"]] == ["accepted"]


@pytest.mark.parametrize(
    ("setting", "codes"),
    [("policy", {"MR701"}), ("lock", {"MR707"}), ("baseline", set())],
)
def test_each_setting_comes_from_the_base_alone(
    machine: Runner, team: GitRepository, api: Api, setting: str, codes: set[str]
) -> None:
    names = {"policy": "policy.toml", "lock": "adapters.lock", "baseline": "known.json"}
    make_adapter(team.folder / "adapters" / "new", seed=9, base="evil/base")
    (team.folder / names[setting]).unlink()
    team.commit()
    done = check(machine, team, api, paths="adapters/new", **{setting: names[setting]})
    assert {each["code"] for each in done.report["adapters"][0]["findings"]} == codes
    assert done.code == bool(codes)


@pytest.mark.parametrize("setting", ["policy", "lock"])
def test_setting_that_only_the_pull_request_has_is_refused(
    machine: Runner, team: GitRepository, api: Api, setting: str
) -> None:
    (team.folder / "brought.toml").write_text('{"meteora_lock": 1}')
    team.commit()
    done = check(machine, team, api, **{setting: "brought.toml"})
    assert done.code == 2
    assert "`brought.toml` of" in done.err
    assert "what the pull request itself brings is never used" in done.err


def test_pull_request_that_changes_what_it_is_compared_with_is_refused(
    machine: Runner, team: GitRepository, api: Api
) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9)
    team.commit()
    done = check(machine, team, api, **{"for": "fuse", "with": "adapters/legal"})
    assert done.code == 0, done.err
    make_adapter(team.folder / "adapters" / "legal", seed=8)
    team.commit()
    done = check(machine, team, api, **{"for": "fuse", "with": "adapters/legal"})
    assert done.code == 2
    assert "the pull request changes `adapters/legal`" in done.err


def test_inputs_are_never_shell_text(machine: Runner, team: GitRepository, api: Api) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9)
    team.commit()
    mark = machine.temporary / "was-run"
    text = f"$(touch {mark}); `touch {mark}`; '\"; touch {mark} #"
    names = [name for name in ACTION["inputs"] if name not in ("token", "python", "upload-sarif")]
    # The account alone may be any text; each of the others is refused by itself, in the order of the program.
    for given in (names, ["comment-author"]):
        done = check_in_bash(machine, team, api, **{name.replace("-", "_"): text for name in given})
        assert done.code == (0 if given == ["comment-author"] else 2), done.err
        assert not mark.exists()
        assert "defect" not in done.err, done.err


def test_names_in_a_pull_request_are_no_commands_of_the_runner(
    machine: Runner, team: GitRepository, api: Api
) -> None:
    for name in ("##[add-mask]x", "::add-mask::x", "a\n::error::forged", "%0A::error::y", "<img src=x>`|"):
        folder = make_adapter(team.folder / "adapters" / name, seed=9)
        tensors = {
            f"base_model.model.{text}.lora_{factor}.weight": np.ones((2, 2), "float32")
            for text in ("##[stop-commands]x", "::stop-commands::x", "\n::add-path::/evil", "m" * 10_000)
            for factor in "AB"
        }
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    team.commit()
    done = check(machine, team, api)
    assert done.code == 1, done.err
    assert {name for name, _ in done.commands} <= {"error", "warning", "notice"}
    assert not [text for _, text in done.commands if text.strip() in ("forged", "y")]
    json.loads(Path(done.outputs["sarif"]).read_text())
    assert len(api.bodies()[0]) <= 65_536
    assert "\x1b" not in done.summary


def test_long_report_is_shortened_where_a_host_has_a_limit(
    machine: Runner, team: GitRepository, api: Api
) -> None:
    first = make_adapter(team.folder / "adapters" / "x000", layers=1, lora_alpha=0, bias="z", loftq_config=3)
    for number in range(1, 100):
        shutil.copytree(first, first.with_name(f"x{number:03}" + "x" * 150))
    team.commit()
    done = check(machine, team, api)
    assert done.code == 1
    assert len(done.report["adapters"]) == 100
    (comment,) = api.bodies()
    assert 60_000 < len(comment) <= 65_536
    assert "This page is shortened" in comment
    assert comment.count("<details") == comment.count("</details>") > 5
    assert len(done.summary) > len(comment)


def test_workflow_with_the_rights_of_the_base_is_refused(
    machine: Runner, team: GitRepository, api: Api
) -> None:
    environment = machine.pull_request(team, api_url=api.url)
    done = machine.check(environment | {"GITHUB_EVENT_NAME": "pull_request_target"}, token=WRITER)
    assert done.code == 2
    assert "`pull_request_target`, which gives a stranger the rights of the base" in done.err
    assert api.requests == []


def test_ten_adapters_of_every_kind_go_through_all_of_it(
    machine: Runner, team: GitRepository, api: Api
) -> None:
    """Good, broken, hostile, renamed, removed and unchanged ones; each result has each of them once."""
    for number in range(3):
        make_adapter(team.folder / "adapters" / f"unchanged-{number}", seed=20 + number)
    team.commit()
    team.git("branch", "--force", "main")
    for number in range(3):
        make_adapter(team.folder / "adapters" / f"good-{number}", seed=30 + number)
    make_adapter(team.folder / "adapters" / "broken", seed=40, lora_alpha=0)
    hostile = make_adapter(team.folder / "adapters" / "<b>hostile`\x1b[31m", seed=41)
    (hostile / "adapter_model.bin").write_bytes(b"\x80\x04pickle")
    linked = make_adapter(team.folder / "adapters" / "linked", seed=42)
    (linked / "adapter_config.json").unlink()
    (linked / "adapter_config.json").symlink_to("/etc/passwd")
    team.git("mv", "adapters/legal", "adapters/renamed")
    team.git("rm", "-r", "--quiet", "adapters/medical")
    team.commit()
    done = check(machine, team, api, policy="policy.toml", baseline="known.json")
    assert done.code == 2, "one cannot be read"
    outcomes = {Path(each["name"]).name: each["outcome"] for each in done.report["adapters"]}
    assert outcomes == {
        "<b>hostile`\x1b[31m": "accepted",
        "broken": "refused",
        "good-0": "accepted",
        "good-1": "accepted",
        "good-2": "accepted",
        "linked": "unreadable",
        "renamed": "accepted",
    }
    assert done.report["selection"]["unchanged"] == 4
    assert done.report["selection"]["removed"] == ["adapters/legal", "adapters/medical"]
    sarif = json.loads(Path(done.outputs["sarif"]).read_text())
    assert "MR112" in {each["ruleId"] for each in sarif["runs"][0]["results"]}
    (comment,) = api.bodies()
    assert "root:" not in comment + done.out + done.err
    assert "\x1b" not in comment + done.summary + done.out
    for name in ("broken", "linked"):
        assert name in comment
        assert name in done.summary
