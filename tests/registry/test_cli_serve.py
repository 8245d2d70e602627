"""The command ``serve`` in a process of its own: it listens, answers, and stops in order."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import httpx2

from support.members import fuse, read_members
from support.models import make_llama_adapters
from support.program import PROGRAM
from support.task_data import TEMPLATE, save_text_base


def test_serve_answers_and_stops_in_order(tmp_path: Path) -> None:
    members = dict([*make_llama_adapters(tmp_path / "adapters").items()][:2])
    fuse(read_members(members), tmp_path / "pair", gate="normal")
    base = save_text_base(tmp_path / "base", pad_token="<unk>", chat_template=TEMPLATE)
    command = [PROGRAM, "serve", tmp_path / "pair", "--base", base, "--port", "0"]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True) as process:
        printed = []
        for line in process.stderr:
            printed.append(line)
            if line.startswith("listening on "):
                break
        url = printed[-1].split()[2].rstrip(";")
        body = {"model": "pair/rank4", "prompt": "w1 w2", "max_tokens": 4, "temperature": 0}
        answer = httpx2.post(f"{url}/completions", json=body, timeout=60)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert answer.status_code == 200, answer.text
    assert answer.json()["meteora"]["member"] == "rank4"
    assert (process.returncode, rest) == (0, "")
    assert "serving `pair`, `pair/rank4`, `pair/rank8`, `pair/base`" in "".join(printed)
