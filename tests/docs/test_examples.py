"""The Python examples of the guides run as they are, on a tiny base with a bundle whose gates are fitted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import meteora_registry as meteora
from support.models import LOADS_WITH_PEFT, make_adapter, tiny_llama
from support.task_data import save_text_base, write_task_data

DOCS = Path(__file__).parents[2] / "docs"
NAMES = ("legal", "medical")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the guides name: a base, data, and a fitted bundle."""
    folder = tmp_path_factory.mktemp("guides")
    save_text_base(folder / "base")
    (folder / "llama").symlink_to("base")
    write_task_data(folder / "data", NAMES)
    (folder / "tasks").symlink_to("data")
    for seed, name in enumerate(NAMES):
        make_adapter(tiny_llama, folder / name, seed=seed, r=4 + seed, target_modules=["q_proj"])
    fused = meteora.fuse([folder / name for name in NAMES], base=str(folder / "base"))
    fused.fit(folder / "data").save(folder / "bundle")
    return folder


def examples_of(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"<!-- run by tests/docs/test_examples.py -->\n```python\n(.*?)```", text, re.DOTALL)


@LOADS_WITH_PEFT
@pytest.mark.parametrize("page", ["evaluation.md", "gate-fitting.md", "runtime.md", "tracing.md"])
def test_examples_of_the_guide_run(
    place: Path, page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("METEORA_HOME", str(place / "home"))
    examples = examples_of(page)
    assert examples
    for example in examples:
        exec(example, {})
