"""The base's chat template, rendered in a process of its own that can be stopped.

A template is a program that came with the base. The sandbox that transformers runs it in keeps it from the
machine, but not from looping, nesting ``range`` in ``range`` or multiplying a string: only the system can
stop those. The process begins with ``MAX_SECONDS`` of CPU time, of which every conversation gives
``SECONDS_EACH`` back; a busy machine changes nothing. Beyond what it starts with it has ``MAX_MEMORY_BYTES``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from transformers import PreTrainedTokenizerBase

from ...schemas.errors import DataRefused

MAX_SECONDS = 10.0
# Templates in use take a millisecond.
SECONDS_EACH = 0.05
MAX_MEMORY_BYTES = 1 << 30
MAX_PROMPT_CHARACTERS = 4 << 20
_WORKER = Path(__file__).with_name("chat_template_worker.py")
_SHOWN_CHARACTERS = 300


class ChatTemplate:
    """A tokenizer's chat template; the process starts with the first conversation and ends with the block.

    A block within a block of the same tokenizer uses that one's process.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_seconds: float = MAX_SECONDS) -> None:
        self.tokenizer = tokenizer
        self._max_seconds = max_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._outer: Token[ChatTemplate | None] | None = None

    def __enter__(self) -> ChatTemplate:
        outer = _opened.get()
        if outer is not None and outer.tokenizer is self.tokenizer:
            return outer
        self._outer = _opened.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._outer is not None:
            _opened.reset(self._outer)
        self.close()

    def close(self) -> None:
        """End the process; the block does so by itself."""
        if self._process is not None:
            self._process.kill()
            # Closes the pipes and waits.
            self._process.communicate()
            self._process = None

    @property
    def has_ended(self) -> bool:
        """Whether the process was started and has ended, so that no conversation can be rendered any more."""
        return self._process is not None and self._process.poll() is not None

    def render(self, turns: Sequence[Mapping[str, str]]) -> str:
        """Return the conversation written out, with the cue to answer.

        Raises:
            DataRefused: there is no template, it refuses the conversation, or it had to be stopped.
        """
        if self._process is None:
            self._process = self._start()
        answer = self._ask(self._process, turns)
        if "text" not in answer:
            raise DataRefused(
                f"is refused by the base's chat template: {str(answer.get('error'))[:_SHOWN_CHARACTERS]}"
            )
        return str(answer["text"])

    def _start(self) -> subprocess.Popen[bytes]:
        if self.tokenizer.chat_template is None:
            raise DataRefused("has `messages`, and the base's tokenizer has no chat template for them")
        try:
            template = self.tokenizer.get_chat_template()
        except ValueError as error:
            raise DataRefused(
                "has `messages`, and the base's tokenizer has several chat templates, none of them `default`"
            ) from error
        process = subprocess.Popen(  # noqa: S603  # this interpreter, with a script of this package
            # Not as a module: its package loads torch. -P keeps the script's folder off the path.
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        first = {
            "template": template,
            "tokens": self.tokenizer.special_tokens_map,
            "max_seconds": self._max_seconds,
            "seconds_each": SECONDS_EACH,
            "max_memory_bytes": MAX_MEMORY_BYTES,
            "max_characters": MAX_PROMPT_CHARACTERS,
        }
        _send(process, first)
        return process

    def _ask(self, process: subprocess.Popen[bytes], turns: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        _send(process, list(turns))
        line = cast("IO[bytes]", process.stdout).readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        if process.wait() == -signal.SIGPROF:
            return {"error": f"it was stopped after {self._max_seconds:g} seconds of computing"}
        return {"error": f"its process ended with code {process.returncode}"}


_opened: ContextVar[ChatTemplate | None] = ContextVar("opened", default=None)


def _send(process: subprocess.Popen[bytes], value: Any) -> None:
    stdin = cast("IO[bytes]", process.stdin)
    try:
        # A special token may be an object of its own.
        stdin.write(json.dumps(value, default=str).encode("ascii") + b"\n")
        stdin.flush()
    except BrokenPipeError:
        # The process is gone; reading from it gives the reason.
        return


def without_first_token(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a rendered prompt without the token that the tokenizer itself puts first."""
    # Many templates write the token of the beginning out, and the tokenizer would put it there again.
    first = tokenizer.bos_token
    if not isinstance(first, str) or not text.startswith(first):
        return text
    ids = tokenizer(text, verbose=False)["input_ids"]
    return text.removeprefix(first) if ids[:2] == [tokenizer.bos_token_id] * 2 else text
