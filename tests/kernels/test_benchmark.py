"""The kernels' benchmark measures a point and the tables read its rows; no time is judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POINT = "4096x1024-L28-r8-k2-T1-bf16-uniform"

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="an installed copy has no benchmarks"
)


def run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONSAFEPATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.run", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_point_is_measured_and_tabled(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = run("kernels", "--only", POINT, "--seconds", "0.01").splitlines()
    rows = [json.loads(line) for line in lines]
    ours = next(row for row in rows if row["provider"] == "meteora" and row["mode"] == "forward")
    assert ours["p20"] <= ours["p50"] <= ours["p80"]
    assert ours["error"] < 0.02
    assert 0 < ours["peak_mb"] < 1
    assert {row["provider"] for row in rows} >= {
        "official_loop",
        "present_loop",
        "gathered_bmm",
        "dense",
        "one_lora",
    }
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    report = run("kernel-tables", str(path), "--plots", str(tmp_path / "plots"))
    assert {file.name for file in (tmp_path / "plots").iterdir()} == {
        "kernels-tokens.svg",
        "kernels-regret.svg",
    }
    assert f"| {POINT} |" in report
    assert "of the best of all formulations" in report
