"""``chat`` on a terminal: keys that stop an answer, leave, or call back a line.

All tests are turns of one session; each begins and ends at the prompt, and the last one leaves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from support.conversations import Place, save_chat_base
from support.task_data import TEMPLATE
from support.terminal import Conversation

# An answer of as many tokens takes minutes.
ENDLESS = 100_000
PROMPT = "\n> "
# Refuses the second message, in words that have the turns before it.
TELLING = (
    "{% if messages | length > 1 %}"
    "{{ raise_exception('the turns are ' + messages | map(attribute='content') | join(', ')) }}"
    "{% endif %}"
)


@pytest.fixture(scope="module")
def terminal(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conversation]:
    folder = tmp_path_factory.mktemp("terminal")
    base = save_chat_base(folder / "base", context_tokens=ENDLESS)
    (base / "chat_template.jinja").write_text(TELLING + TEMPLATE)
    environment = os.environ | {"METEORA_HOME": str(folder / "home")}
    options = ("--base-folder", base, "--max-tokens", ENDLESS)
    with Conversation("chat", place.bundle, *options, environment=environment) as opened:
        yield opened


def enter(terminal: Conversation, line: str) -> str:
    """Type a line, and return what is shown until the next prompt."""
    terminal.type(f"{line}\n")
    return terminal.read_until(PROMPT)


def interrupt_answer(terminal: Conversation, message: str) -> str:
    """Stop the answer to a message after its first words, and return what is shown until the next prompt."""
    terminal.type(f"{message}\n")
    terminal.read_until(f"{message}\n")
    began = terminal.read_until(" w")
    terminal.type("\x03")
    return began + terminal.read_until(PROMPT)


def test_first_line_says_who_is_there_and_how_to_leave(terminal: Conversation) -> None:
    shown = terminal.read_until(PROMPT)
    assert "legal, medical on " in shown
    assert shown.endswith("; /help lists the commands, /exit or Ctrl-D leaves\n> ")


def test_ctrl_c_stops_an_answer_and_not_the_session(terminal: Conversation) -> None:
    assert "; stopped]" in interrupt_answer(terminal, "w1 w2 w3")
    assert "how likely each member is by the prompt:" in enter(terminal, "/why")


def test_what_was_written_before_ctrl_c_is_part_of_the_conversation(terminal: Conversation) -> None:
    enter(terminal, "/reset")
    shown = interrupt_answer(terminal, "w1 w2 w3")
    written = shown[: shown.index("^C")]
    assert f"the turns are w1 w2 w3, {written}" in enter(terminal, "w4")


def test_ctrl_c_at_the_prompt_says_how_to_leave(terminal: Conversation) -> None:
    for typed in ("", "half a line"):
        terminal.wait_for_the_line_editor()
        terminal.type(f"{typed}\x03")
        assert terminal.read_until(PROMPT).endswith("\n/exit or Ctrl-D leaves\n> ")
    assert "[`base` answers from now on]" in enter(terminal, "/force base")


def test_earlier_line_is_called_back_by_its_key(terminal: Conversation) -> None:
    enter(terminal, "/force legal")
    enter(terminal, "/force")
    assert "[`legal` answers from now on]" in enter(terminal, "\x1b[A\x1b[A")


def test_refused_line_is_not_a_failure_of_the_session(terminal: Conversation) -> None:
    assert "error: the bundle has no member `nobody`" in enter(terminal, "/force nobody")
    terminal.type("\x04")
    assert terminal.end() == (0, "\n")
