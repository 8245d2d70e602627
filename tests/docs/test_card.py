"""The code on a bundle's card runs, and without its first line PEFT stops as the card has it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import meteora_registry as meteora
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_adapter, tiny_llama
from support.task_data import save_text_base


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card")
    save_text_base(folder / "base")
    for seed, name in enumerate(("legal", "medical")):
        make_adapter(tiny_llama, folder / name, seed=seed, r=4 + seed, target_modules=["q_proj"])
    meteora.fuse([folder / "legal", folder / "medical"], base=str(folder / "base")).save(folder / "bundle")
    return folder / "bundle"


def example_of(bundle: Path) -> str:
    block = re.search(
        r"## Loading and generating\n\n```python\n(.*?)```", (bundle / "README.md").read_text(), re.DOTALL
    )
    assert block is not None
    return block[1].replace("path/or/repository/of/this/bundle", str(bundle))


@LOADS_WITH_PEFT
@LOADS_UNFITTED
def test_card_loads_and_generates(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(example_of(bundle).replace("A prompt", "w1 w2"), {})
    assert capsys.readouterr().out.startswith("w1 w2")


def test_card_without_its_first_line_stops_as_it_says(bundle: Path) -> None:
    first, _, rest = example_of(bundle).partition("\n")
    assert first.startswith("import meteora_registry.runtime")
    result = subprocess.run([sys.executable, "-c", rest], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.endswith("KeyError: 'METEORA'\n")
    assert "`KeyError: 'METEORA'`" in (bundle / "README.md").read_text()
