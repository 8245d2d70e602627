"""``generate`` on the command line: one prompt, its answer on stdout, and who gave it on stderr."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest

from meteora_registry.runtime import LoadedBundle, load_bundle
from meteora_registry.schemas.gate_choices import Scope
from support.conversations import (
    Place,
    abstaining_bundle,
    changed_bundle,
    fitted_bundle,
    save_chat_base,
    written,
)
from support.models import LOADS_WITH_PEFT
from support.program import Run
from support.task_data import save_text_base

pytestmark = [LOADS_WITH_PEFT]


@pytest.fixture(scope="module")
def loaded(place: Place) -> LoadedBundle:
    return load_bundle(place.bundle, place.base)


def type_on_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_answer_is_on_stdout_and_who_gave_it_on_stderr(run: Run, place: Place, loaded: LoadedBundle) -> None:
    # The base is the one that the bundle was fused for.
    result = run("generate", place.bundle, "w1 w2 w3", "--max-tokens", "5")
    assert result.returncode == 0, result.stderr
    answer = loaded.answer(written(("user", "w1 w2 w3")), max_new_tokens=5)
    (decision,) = answer.decisions
    assert result.stdout == f"{answer.text}\n"
    assert result.stderr == (
        f"{decision.members[0]} {decision.confidence:.2f}\nnote: the answer was cut at 5 tokens\n"
    )


@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        (["--system", "w9"], written(("system", "w9"), ("user", "w1 w2"))),
        (["--no-template"], "w1 w2"),
    ],
    ids=["system prompt", "no template"],
)
def test_prompt_is_written_as_asked(
    run: Run, place: Place, loaded: LoadedBundle, options: list[str], prompt: str
) -> None:
    result = run("generate", place.bundle, "w1 w2", "--max-tokens", "4", *options)
    assert result.stdout == f"{loaded.generate(prompt, max_new_tokens=4)}\n"
    assert prompt != written(("user", "w1 w2"))


def test_prompt_is_read_from_stdin_without_its_last_new_line(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = run("generate", place.bundle, "w1 w2", "--max-tokens", "4")
    type_on_stdin(monkeypatch, b"w1 w2\n")
    result = run("generate", place.bundle, "-", "--max-tokens", "4")
    assert (result.returncode, result.stdout) == (0, stated.stdout)


@pytest.mark.parametrize("member", ["legal", "base"])
def test_member_or_base_is_forced(run: Run, place: Place, loaded: LoadedBundle, member: str) -> None:
    result = run("generate", place.bundle, "w1 w2", "--max-tokens", "4", "--member", member)
    forced = None if member == "base" else member
    expected = loaded.generate(written(("user", "w1 w2")), max_new_tokens=4, member=forced)
    assert result.stdout == f"{expected}\n"
    assert result.stderr.startswith(f"{member}, forced\n")


def test_json_has_the_answer_and_who_gave_it(run: Run, place: Place, loaded: LoadedBundle) -> None:
    result = run("generate", place.bundle, "w1 w2", "--max-tokens", "4", "--format", "json")
    answer = loaded.answer(written(("user", "w1 w2")), max_new_tokens=4)
    found = json.loads(result.stdout)
    assert found["text"] == answer.text
    assert [found["member"]] == found["decisions"][0]["members"] == list(answer.decisions[0].members)
    assert found["shares"] == {"legal": 0.0, "medical": 0.0, "base": 0.0} | {found["member"]: 1.0}
    assert {key: found[key] for key in ("forced", "scope", "prompt_tokens", "answer_tokens", "was_cut")} == {
        "forced": False,
        "scope": "prompt",
        "prompt_tokens": 4,
        "answer_tokens": 4,
        "was_cut": True,
    }


def test_json_names_the_member_of_the_longest_segment(run: Run, place: Place) -> None:
    bundle = fitted_bundle(place, scope="segment")
    several = False
    for prompt in ("w1 w2 w3", "w40 w55 w31 w46", "w9 w12 w50", "w3 w44 w7 w41"):
        found = json.loads(run("generate", bundle, prompt, "--max-tokens", "20", "--format", "json").stdout)
        longest = max(found["decisions"], key=lambda each: each["end"] - each["start"])
        several |= len(found["decisions"]) > 1
        assert [found["member"]] == longest["members"]
        assert found["confidence"] == longest["confidence"]
    assert several


@pytest.mark.parametrize(
    ("scope", "top_k", "shown"),
    [
        ("token", 1, r"\w+ [\d.]+ %(, \w+ [\d.]+ %)*"),
        ("segment", 1, r"\w+ \d\.\d\d(, \w+ \d\.\d\d)*"),
        ("prompt", 2, r"(legal \+ medical|medical \+ legal) \d\.\d\d"),
    ],
    ids=["token", "segment", "two members"],
)
def test_who_answered_is_named_in_every_scope(
    run: Run, place: Place, scope: Scope, top_k: int, shown: str
) -> None:
    bundle = fitted_bundle(place, scope=scope, top_k=top_k)
    result = run("generate", bundle, "w1 w2 w3", "--max-tokens", "5")
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(shown, result.stderr.splitlines()[0])


def test_answer_of_the_base_says_so(run: Run, place: Place, loaded: LoadedBundle, tmp_path: Path) -> None:
    result = run("generate", abstaining_bundle(place, tmp_path / "bundle"), "w1 w2 w3", "--max-tokens", "5")
    assert result.stderr.startswith("base\n")
    base = loaded.generate(written(("user", "w1 w2 w3")), max_new_tokens=5, member=None)
    assert result.stdout == f"{base}\n"


def test_control_sequences_of_an_answer_do_not_reach_the_terminal(
    run: Run, place: Place, tmp_path: Path
) -> None:
    base = shutil.copytree(place.base, tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        word if word[0] == "<" or place < 20 else f"{word}\x1b]0;title\x07\n\u202e": place
        for word, place in words.items()
    }
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    result = run("generate", place.bundle, "w1 w2", "--base", base, "--max-tokens", "4")
    assert result.returncode == 0, result.stderr
    assert "\\x1b]0;title\\x07\n\\u202e" in result.stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(result.stdout)
    found = json.loads(run("generate", place.bundle, "w1 w2", "--base", base, "--format", "json").stdout)
    assert "\x1b]0;title\x07\n\u202e" in found["text"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["w1", "--member", "other"],
            "the bundle has no member `other`, it has `legal`, `medical`; `base` is",
        ),
        (["w1", "--no-template", "--system", "w2"], "`--system` is a part of the chat template, found also"),
        (["", "--no-template"], "the prompt has no tokens, expected some text"),
        (["w1\udcff"], "the prompt is not UTF-8"),
        (["w1", "--system", "\udcff"], "the system prompt is not UTF-8"),
        (["w1 " * 64], "the prompt has 66 tokens, the base takes 64 together with the answer"),
        (["w1", "--max-tokens", "0"], "invalid value for `--max-tokens`: 0 is not in the range"),
    ],
    ids=["member", "system", "empty", "not UTF-8", "system not UTF-8", "too long", "no answer"],
)
def test_what_cannot_be_answered_is_refused(run: Run, place: Place, options: list[str], message: str) -> None:
    result = run("generate", place.bundle, *options)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message}")


def test_base_without_a_chat_template_is_refused_with_the_way_out(
    run: Run, place: Place, tmp_path: Path
) -> None:
    base = save_text_base(tmp_path / "base")
    result = run("generate", place.bundle, "w1", "--base", base)
    assert result.returncode == 2
    assert "has no chat template, so it takes no conversations\nhint: give it one text" in result.stderr
    assert run("generate", place.bundle, "w1", "--base", base, "--no-template").returncode == 0


def test_refusals_need_no_weights_of_the_base(run: Run, place: Place, tmp_path: Path) -> None:
    base = save_chat_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    assert (
        "has no member `other`"
        in run("generate", place.bundle, "w1", "--base", base, "--member", "other").stderr
    )
    assert "cannot be loaded as the base" in run("generate", place.bundle, "w1", "--base", base).stderr


def test_base_that_the_bundle_names_and_that_is_gone_is_named(run: Run, place: Place, tmp_path: Path) -> None:
    gone = {"base_model_name_or_path": "/nowhere/base"}
    bundle = changed_bundle(place, tmp_path / "bundle", lambda config: config.update(gone))
    for command in (["generate", bundle, "w1"], ["chat", bundle], ["trace", bundle, "--prompt", "w1"]):
        result = run(*command)
        assert (result.returncode, result.stderr) == (
            2,
            "error: the bundle was fused for the base in `/nowhere/base`, which does not exist here\n"
            "hint: name it with `--base ORG/MODEL`, or its folder with `--base-folder`\n",
        )


def test_base_that_the_bundle_names_is_announced_before_it_is_downloaded(
    run: Run, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    absent = {"base_model_name_or_path": "nobody/absent"}
    bundle = changed_bundle(place, tmp_path / "bundle", lambda config: config.update(absent))
    result = run("generate", bundle, "w1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "warning: the bundle names the base `nobody/absent`, which is downloaded from the Hub\n"
        "error: `nobody/absent` cannot be loaded as the base"
    )


@pytest.mark.parametrize("trap", ["code", "pickle"])
def test_nothing_of_a_base_that_the_bundle_names_is_run(
    run: Run, place: Place, tmp_path: Path, trap: str
) -> None:
    base, mark = save_chat_base(tmp_path / "base"), tmp_path / "mark"
    if trap == "code":
        config = json.loads((base / "config.json").read_text())
        own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
        (base / "config.json").write_text(json.dumps(config | own))
        (base / "own.py").write_text(f"open({str(mark)!r}, 'w')")
    else:
        (base / "model.safetensors").unlink()
        # What pickle would call: `open(mark, 'w')`.
        (base / "pytorch_model.bin").write_bytes(b"cbuiltins\nopen\n(" + f"V{mark}\nVw\ntR.".encode())
    named = {"base_model_name_or_path": str(base)}
    bundle = changed_bundle(place, tmp_path / "bundle", lambda config: config.update(named))
    result = run("generate", bundle, "w1")
    assert (result.returncode, result.stdout) == (2, "")
    assert f"error: `{base}` cannot be loaded as the base" in result.stderr
    assert not mark.exists()
