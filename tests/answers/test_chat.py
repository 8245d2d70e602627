"""``chat`` with lines from a pipe: the conversation, its commands, and what is refused."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from meteora_registry.registry.cli import chat
from meteora_registry.registry.cli.answer_text import describe_served
from meteora_registry.registry.workflows.conversation import Served
from meteora_registry.runtime import Decision, LoadedBundle, load_bundle
from support import warm
from support.conversations import (
    MEMBERS,
    Place,
    abstaining_bundle,
    fitted_bundle,
    save_chat_base,
    written,
)
from support.models import LOADS_WITH_PEFT
from support.program import Run
from support.task_data import save_text_base

pytestmark = [LOADS_WITH_PEFT]

Chat = Callable[..., CompletedProcess[str]]
SHORT = ("--max-tokens", "4")


@pytest.fixture(scope="module")
def loaded(place: Place) -> LoadedBundle:
    return load_bundle(place.bundle, place.base)


@pytest.fixture
def chat_with(run: Run, place: Place, monkeypatch: pytest.MonkeyPatch) -> Chat:
    def hold(*lines: str | bytes, options: tuple[object, ...] = SHORT, bundle: Path | None = None) -> object:
        data = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        return run("chat", bundle or place.bundle, *options)

    return hold


def test_each_message_is_answered_with_the_turns_before_it(chat_with: Chat, loaded: LoadedBundle) -> None:
    result = chat_with("w1 w2", "", "  w3  ", options=(*SHORT, "--system", "w9"))
    assert result.returncode == 0, result.stderr
    turns = [("system", "w9"), ("user", "w1 w2")]
    first = loaded.answer(written(*turns), max_new_tokens=4)
    turns += [("assistant", first.text), ("user", "w3")]
    second = loaded.answer(written(*turns), max_new_tokens=4)
    assert result.stdout == f"{first.text}\n{second.text}\n"
    assert result.stderr == "".join(
        f"[{decision.members[0]} {decision.confidence:.2f}; cut at 4 tokens]\n"
        for decision in (first.decisions[0], second.decisions[0])
    )


def test_forced_member_answers_until_the_bundle_decides_again(chat_with: Chat, loaded: LoadedBundle) -> None:
    forced = [
        loaded.generate(written(("user", "w1")), max_new_tokens=4, member=member)
        for member in ("medical", None)
    ]
    lines = ("/force medical", "w1", "/reset", "/force base", "w1", "/reset", "/force", "w1")
    result = chat_with(*lines)
    assert result.stdout.splitlines()[:2] == forced
    assert result.stdout.splitlines()[2] == loaded.generate(written(("user", "w1")), max_new_tokens=4)
    assert re.fullmatch(
        r"\[`medical` answers from now on\]\n\[medical, forced; cut at 4 tokens\]\n\[a new conversation\]\n"
        r"\[`base` answers from now on\]\n\[base, forced; cut at 4 tokens\]\n\[a new conversation\]\n"
        r"\[the bundle decides again\]\n\[(legal|medical) \d\.\d\d; cut at 4 tokens\]\n",
        result.stderr,
    )


def bars_in(text: str) -> dict[str, tuple[float, int]]:
    """Return the number and the length of the bar of each row."""
    rows = re.findall(r"^  (\S.*?)  +(\d\.\d\d)(?:  (#*))?$", text, re.MULTILINE)
    return {name: (float(share), len(bar)) for name, share, bar in rows}


def test_why_shows_the_evidence_of_every_member(chat_with: Chat, loaded: LoadedBundle) -> None:
    (decision,) = loaded.answer(written(("user", "w1 w2")), max_new_tokens=4).decisions
    result = chat_with("w1 w2", "/why")
    evidence = dict(zip(MEMBERS, decision.evidence, strict=True))
    evidence["(no member)"] = 1 - sum(decision.evidence)
    bars = bars_in(result.stdout)
    assert list(bars) == sorted(evidence, key=lambda name: -evidence[name])
    for name, (share, length) in bars.items():
        assert share == pytest.approx(evidence[name], abs=0.0051)
        assert length == round(40 * evidence[name])
    answered = f"{decision.members[0]} answered, confidence {decision.confidence:.2f}\n"
    assert answered in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_why_says_why_the_base_answered(chat_with: Chat, place: Place, tmp_path: Path) -> None:
    result = chat_with("w1 w2", "/why", bundle=abstaining_bundle(place, tmp_path / "bundle"))
    assert "[base; cut at 4 tokens]" in result.stderr
    assert re.search(r"^left to the base: confidence 0\.00, below 0\.05$", result.stdout, re.MULTILINE)


def test_why_of_a_scope_that_decides_by_token_shows_shares(chat_with: Chat, place: Place) -> None:
    result = chat_with("w1 w2", "/why", bundle=fitted_bundle(place, scope="token"))
    assert "scope `token`: every module decides for each token; shares of the answer:" in result.stdout
    bars = bars_in(result.stdout)
    assert set(bars) == {*MEMBERS, "base"}
    assert sum(share for share, _ in bars.values()) == pytest.approx(1, abs=0.011)


def test_why_of_segments_shows_each(chat_with: Chat, place: Place) -> None:
    result = chat_with("w1 w2", "/why", bundle=fitted_bundle(place, scope="segment"))
    assert re.search(r"^how likely each member is by tokens \d+ to \d+:$", result.stdout, re.MULTILINE)
    assert "(no member)" not in result.stdout


def test_why_of_a_forced_answer_and_without_one(chat_with: Chat) -> None:
    result = chat_with("/why", "/force legal", "w1", "/why", "/reset", "/why")
    assert result.stdout.endswith("\n`legal` was forced, so nothing was decided\n")
    assert result.stderr.count("error: there is no answer yet to explain\n") == 2


def test_reset_keeps_the_system_prompt_and_forgets_the_turns(chat_with: Chat, loaded: LoadedBundle) -> None:
    options = ("--max-tokens", "12", "--system", "w9")
    result = chat_with("w1 w2 w3", "w40 w41", "/reset", "w40 w41", options=options)
    _, with_turns, alone = result.stdout.splitlines()
    assert alone == loaded.generate(written(("system", "w9"), ("user", "w40 w41")), max_new_tokens=12)
    assert alone != with_turns


def test_help_names_every_command_and_exit_ends(chat_with: Chat) -> None:
    result = chat_with("/help", "/exit", "w1")
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["/force", "/why", "/reset", "/help", "/exit"]
    assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture(scope="module")
def two_answers(loaded: LoadedBundle) -> str:
    """The lines that answer `w1`, and `w2` after it."""
    first = loaded.answer(written(("user", "w1")), max_new_tokens=4).text
    turns = (("user", "w1"), ("assistant", first), ("user", "w2"))
    return f"{first}\n{loaded.answer(written(*turns), max_new_tokens=4).text}\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "/force other",
            "the bundle has no member `other`, it has `legal`, `medical`; `base` is the base alone",
        ),
        ("/leave", "`/leave` is not a command, expected one of /force, /why, /reset, /help, /exit"),
        ("/\x1b[2J", "`/\\x1b[2J` is not a command"),
        (b"w1 \xff", "the line is not UTF-8"),
        (
            "w1 " * 64,
            "the message was not sent: the prompt has 73 tokens, the base takes 64 together with the answer\n"
            "hint: `/reset` begins a new conversation; until then the old one goes on without this message",
        ),
    ],
    ids=["member", "command", "control", "not UTF-8", "too long"],
)
def test_line_that_is_refused_leaves_the_conversation_as_it_was(
    chat_with: Chat, two_answers: str, line: str | bytes, message: str
) -> None:
    result = chat_with("w1", line, "w2")
    assert (result.returncode, result.stdout) == (2, two_answers)
    assert f"]\nerror: {message}" in result.stderr


def test_line_that_is_too_long_is_refused_as_a_whole(
    chat_with: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "_MAX_CHARACTERS", 8)
    result = chat_with("w1 w2 w3 w4 w5 w6 w7 w8 w9", "w1 w2 w3", "/exit")
    assert result.stderr.startswith("error: the line has more than 8 characters\n[")
    assert len(result.stdout.splitlines()) == 1


def test_long_conversation_is_refused_and_goes_on_after_a_reset(chat_with: Chat) -> None:
    lines = ["w1 w2 w3 w4 w5 w6 w7 w8"] * 5
    result = chat_with(*lines, "/reset", lines[0])
    answers = result.stdout.splitlines()
    refused = result.stderr.count("the message was not sent: the prompt has")
    assert 0 < refused < 5
    assert len(answers) == 6 - refused
    assert answers[-1] == answers[0]


def test_base_without_a_chat_template_is_refused_before_its_weights_are_read(
    chat_with: Chat, place: Place, tmp_path: Path
) -> None:
    base = save_text_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    result = chat_with("w1", options=("--base", base))
    assert result.returncode == 2
    assert result.stderr.endswith(
        f"error: the base `{base}` has no chat template, so it takes no conversations\n"
        "hint: give it one text as it is: `meteora-registry generate BUNDLE PROMPT --no-template`\n"
    )


def test_template_that_refuses_a_conversation_is_reported(
    chat_with: Chat, place: Place, tmp_path: Path
) -> None:
    base = save_chat_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ raise_exception('no thanks') }}")
    result = chat_with("w1", options=("--base", base))
    assert result.returncode == 2
    assert "not sent: the conversation is refused by the base's chat template: no thanks\n" in result.stderr


def test_no_lines_end_at_once(chat_with: Chat) -> None:
    result = chat_with(b"")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_closed_stdin_ends_at_once(place: Place, tmp_path: Path) -> None:
    script = (
        "import os, sys; os.close(0)\n"
        "from meteora_registry.registry.cli.entry import main\n"
        "sys.stdin = None; main()"
    )
    command = [sys.executable, "-c", script, "chat", place.bundle]
    environment = os.environ | {"METEORA_HOME": str(tmp_path / "home")}
    result = warm.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("weights", "shown"), [((0.996, 0.004), "legal 0.98"), ((0.6, 0.4), "legal + medical 0.98")]
)
def test_members_whose_share_rounds_to_nothing_are_not_named(
    weights: tuple[float, float], shown: str
) -> None:
    decision = Decision(0, 0, 5, ("legal", "medical"), weights, 0.98, (0.9, 0.1))
    served = Served("legal", 0.98, forced=False, scope="prompt", decisions=(decision,), shares={})
    assert describe_served(served) == shown
