"""``chat``: a conversation with a bundle, line by line."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...schemas.errors import MeteoraError, UsageError
from ..dependencies import require_torch
from ..face import Registry
from ..workflows.base_place import choose_base_to_run
from ..workflows.bundle_folder import find_bundle_folder
from .failures import report_failure, worst_code
from .groups import examples
from .output import print_gate_remark, print_line, print_remark
from .parameters import (
    base_folder_option,
    base_option,
    bundle_argument,
    max_tokens_option,
    pass_registry,
    system_option,
)
from .prompts import check_text

if TYPE_CHECKING:
    from ..workflows.conversation import Conversation, Served

_PROMPT = "> "
_MAX_CHARACTERS = 1 << 20
_LEAVE = "/exit or Ctrl-D leaves"
_ANEW = "`/reset` begins a new conversation; until then the old one goes on without this message"


@click.command(
    "chat",
    epilog=examples(
        "chat ./bundle",
        "chat bundle@2 --base ./llama --system 'Answer in one sentence.'",
        "chat ./bundle < questions.txt",
    ),
)
@bundle_argument
@base_option
@base_folder_option
@system_option
@max_tokens_option
@pass_registry
def command(
    registry: Registry,
    bundle: str,
    *,
    base: str | None,
    base_folder: Path | None,
    system: str | None,
    max_tokens: int,
) -> int:
    """Hold a conversation with a bundle, and see who answers.

    Each line is a message; those before it and their answers are part of the prompt. After each answer is who
    gave it, and how sure the bundle was. /force NAME lets one member answer, /why shows the evidence, and
    /help lists the rest. Ctrl-C stops an answer, Ctrl-D leaves. Lines may also come from a pipe.
    """
    require_torch("answering")
    from ...runtime.chat_prompt import ChatPrompts
    from ..workflows.conversation import Conversation, load_to_answer

    if system is not None:
        check_text(system, "the system prompt")
    folder = find_bundle_folder(registry, bundle)
    source = choose_base_to_run(registry, folder, base, base_folder)
    loaded = load_to_answer(folder, source, with_template=True)
    if not loaded.config.gate.is_fitted:
        print_gate_remark()
    with ChatPrompts(loaded.tokenizer) as prompts:
        conversation = Conversation(loaded, prompts, system=system, max_new_tokens=max_tokens)
        if isinstance(sys.stdin, io.TextIOWrapper):
            # A line that is not text is refused by itself, and the next one is read.
            sys.stdin.reconfigure(errors="surrogateescape")
        reader = _Terminal() if sys.stdin.isatty() and sys.stdout.isatty() else _Pipe()
        session = _Session(conversation, reader)
        if isinstance(reader, _Terminal):
            print_remark(f"{', '.join(loaded.config.names)} on {source}; /help lists the commands, {_LEAVE}")
        return session.run()


class _Terminal:
    """Lines that a person types, with a history and editing where the system has readline."""

    is_terminal = True

    def __init__(self) -> None:
        with suppress(ImportError):
            # `input` uses it from then on.
            import readline  # noqa: F401

    def read(self) -> str:
        """Return the next line.

        Raises:
            EOFError: there are no more lines.
        """
        # It writes to the terminal by itself.
        sys.stdout.flush()
        try:
            return input(_PROMPT)
        except (EOFError, KeyboardInterrupt):
            # What comes next is not behind the prompt.
            print_remark("")
            raise


class _Pipe:
    """Lines of a file or another program."""

    is_terminal = False

    def read(self) -> str:
        """Return the next line; of one that is too long its beginning, longer than any that is taken.

        Raises:
            EOFError: there are no more lines.
        """
        line = rest = sys.stdin.readline(_MAX_CHARACTERS + 2)
        if not line:
            raise EOFError
        while rest and not rest.endswith("\n"):
            rest = sys.stdin.readline(_MAX_CHARACTERS)
        return line


class _Session:
    """A conversation on a terminal or in a pipe: messages, commands, and what is printed of them."""

    def __init__(self, conversation: Conversation, reader: _Terminal | _Pipe) -> None:
        self._conversation = conversation
        self._reader = reader
        self._last: Served | None = None
        self._codes: list[int] = []
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/force": ("/force NAME lets one member answer, `base` the base; /force alone none", self._force),
            "/why": ("/why shows how likely each member was for the last answer", self._why),
            "/reset": ("/reset begins a new conversation", self._reset),
            "/help": ("/help lists the commands", self._help),
            "/exit": (f"{_LEAVE}; Ctrl-C stops an answer", self._exit),
        }

    def run(self) -> int:
        """Answer every line, and return the exit code: 0 at a terminal, where every failure was seen."""
        while True:
            try:
                self._take(self._reader.read())
            except EOFError:
                break
            except KeyboardInterrupt:
                if not self._reader.is_terminal:
                    raise
                print_remark(_LEAVE)
            except MeteoraError as error:
                self._codes.append(report_failure(error))
        return 0 if self._reader.is_terminal else worst_code(self._codes)

    def _take(self, line: str) -> None:
        line = check_text(line.strip(), "the line")
        if len(line) > _MAX_CHARACTERS:
            raise UsageError(f"the line has more than {_MAX_CHARACTERS} characters")
        if line.startswith("/"):
            name, _, rest = line.partition(" ")
            if name not in self._commands:
                raise UsageError(
                    f"`{name}` is not a command, expected one of {', '.join(self._commands)}",
                    hint="to send a text that begins with `/`, put a word before it",
                )
            self._commands[name][1](rest.strip())
        elif line:
            self._answer(line)

    def _answer(self, text: str) -> None:
        from ..workflows.conversation import Served
        from .answer_text import describe_served, print_pieces

        conversation = self._conversation
        try:
            stream = conversation.ask(text)
        except UsageError as error:
            message = f"the message was not sent: {error.message}"
            raise UsageError(message, hint=error.hint or _ANEW) from error
        was_stopped = False
        try:
            print_pieces(stream)
        except KeyboardInterrupt:
            if not self._reader.is_terminal:
                raise
            was_stopped = True
        if was_stopped and not stream.answer.text:
            print_remark("[stopped before the answer began; the message is not part of the conversation]")
            return
        conversation.keep(text, stream.answer.text)
        scope = conversation.loaded.config.gate.scope
        self._last = Served.of(stream, scope, forced=conversation.forced is not None)
        ended = ""
        if was_stopped:
            ended = "; stopped"
        elif stream.was_cut:
            ended = f"; cut at {stream.answer_tokens} tokens"
        print_remark(f"[{describe_served(self._last)}{ended}]")

    def _force(self, name: str) -> None:
        self._conversation.force(name or None)
        print_remark(f"[`{name}` answers from now on]" if name else "[the bundle decides again]")

    def _why(self, _: str) -> None:
        from .answer_text import explain

        if self._last is None:
            raise UsageError("there is no answer yet to explain")
        for line in explain(self._last, self._conversation.loaded):
            print_line(line)

    def _reset(self, _: str) -> None:
        self._conversation.forget()
        self._last = None
        print_remark("[a new conversation]")

    def _help(self, _: str) -> None:
        for text, _run in self._commands.values():
            print_line(text)

    def _exit(self, _: str) -> None:
        raise EOFError
