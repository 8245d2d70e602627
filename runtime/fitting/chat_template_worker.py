"""The process that renders chat templates: one JSON line in, one out. Run as a script, without this package.

The first line holds the template and the limits. CPU time is limited by a timer whose signal ends the
process, because a template can spend it inside a single operation, where no Python code is asked.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

_STATUS = Path("/proc/self/statm")


def main() -> None:
    """Answer every line of the standard input."""
    first = json.loads(sys.stdin.readline())
    _limit_memory(first["max_memory_bytes"])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    # Ctrl-C in a terminal reaches this process too, and means what its parent does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    left = first["max_seconds"]
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, left)
        answer = _render(json.loads(line), first)
        left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
        left = min(left + first["seconds_each"], first["max_seconds"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _render(turns: list[dict[str, str]], first: dict[str, Any]) -> dict[str, str]:
    try:
        # The text of the first conversation; the second element marks what the assistant wrote.
        text = render_jinja_template(
            conversations=[turns],
            chat_template=first["template"],
            add_generation_prompt=True,
            **first["tokens"],
        )[0][0]
    # A program from elsewhere: what it does with a message that it did not expect is its own.
    except Exception as error:  # noqa: BLE001
        return {"error": str(error) or type(error).__name__}
    if len(text) > first["max_characters"]:
        return {"error": f"it made more than {first['max_characters']} characters of the messages"}
    return {"text": text}


def _limit_memory(max_bytes: int) -> None:
    # A system without this file does not support the limit either.
    if _STATUS.exists():
        used = int(_STATUS.read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = used + max_bytes if hard == resource.RLIM_INFINITY else min(used + max_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    main()
