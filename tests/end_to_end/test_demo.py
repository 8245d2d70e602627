"""``make demo`` ends with a bundle that picks the right member, and the README goes on from there.

The demo trains, fits and evaluates for a minute, so it is not run again here: what it left is looked at.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from support.pages import example_of

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    """The demo, after a run."""
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not (module.OUTPUT / "demo.svg").is_file():
        pytest.skip("needs what `make demo` leaves")
    return module


def test_demo_routes_every_question_to_its_member(demo: ModuleType) -> None:
    found = json.loads((demo.OUTPUT / "scores.json").read_text())
    scores = {each["mode"]: each["score"] for each in found["modes"]}
    assert set(scores) == {"base", "uniform", "routed", "member"}
    assert scores["routed"] >= 0.95 * scores["member"] > 0.9
    assert scores["base"] < scores["routed"] / 2 > scores["uniform"]


def test_picture_of_the_demo_shows_each_question(demo: ModuleType) -> None:
    picture = (demo.OUTPUT / "demo.svg").read_text()
    for word in (*" ".join(demo.QUESTIONS).split(), *demo.ADAPTERS):
        assert f">{word}<" in picture


def test_quickstart_of_the_readme_ends_in_the_right_answer(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    *code, answer = example_of("README.md", "quickstart").splitlines()
    assert len([line for line in code if line]) <= 10
    # In a copy, because a bundle is never saved over another one.
    shutil.copytree(demo.OUTPUT, tmp_path / demo.OUTPUT.name, ignore=shutil.ignore_patterns("mine"))
    monkeypatch.chdir(tmp_path)
    exec("\n".join(code), {})
    assert capsys.readouterr().out.strip() == answer.removeprefix("# ")
