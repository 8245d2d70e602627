"""Processes forked from the server show what started ones show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import warm

SCRIPTS = {
    "done": "print('out'); import sys; print('err', file=sys.stderr)",
    "not flushed": "import sys; sys.stdout.write('no newline')",
    "code": "import sys; print('before'); sys.exit(3)",
    "words": "import sys; sys.exit('words')",
    "traceback": "import sys; sys.tracebacklimit = 0; raise ValueError('found')",
    "no cleaning up": "import os; os._exit(5)",
    "thread": "import threading; threading.Timer(0.01, print, ['thread']).start()",
    "killed": f"import os; print('lost'); os.kill(os.getpid(), {signal.SIGKILL.value})",
    "terminated": f"import os; os.kill(os.getpid(), {signal.SIGTERM.value})",
    "signals": "import signal; print([signal.getsignal(each) for each in (2, 13, 15, 17)])",
    "arguments and stdin": "import sys; print(sys.argv, sys.stdin.read())",
    "folder and environment": "import os; print(os.getcwd(), sorted(os.environ))",
    "main": "import sys; print(__name__, vars(sys.modules['__main__']) is globals())",
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_forked_process_shows_what_a_started_one_shows(script: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", script, "word"]
    # Its output is buffered, and its locale is not one in which an interpreter sets a variable.
    kept = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "GIVEN": "here"}
    started, forked = (
        run(command, cwd=tmp_path, env=kept, input="given", capture_output=True, text=True, check=False)
        for run in (subprocess.run, warm.run)
    )
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert forked.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_option_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no options \['start_new_session'\]"):
        warm.Popen([sys.executable, "-c", ""], start_new_session=True)
