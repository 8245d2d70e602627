"""The code on a bundle's card runs; without its first line PEFT stops, which replaces nothing of PEFT."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import meteora_registry as meteora
from support import warm
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


# In a process of its own, whose PEFT has not met this package: the warm server has not imported it.
WITHOUT_FIRST_LINE = """
import sys, traceback
import peft, peft.mapping, peft.tuners.tuners_utils as t
own = lambda: {c: dict(vars(c)) for c in (peft.PeftModel, peft.PeftConfig, t.BaseTuner, t.BaseTunerLayer)}
before, types = own(), dict(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
first, rest = sys.argv[1:]
try:
    exec(rest, {})
except Exception:
    traceback.print_exc()
exec(first, {})
after = dict(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
print("METEORA" in after, own() == before, {k: after[k] for k in after if k != "METEORA"} == types)
"""


@pytest.fixture(scope="module")
def without_first_line(bundle: Path) -> subprocess.CompletedProcess[str]:
    """Run the example without its first line, and then that line."""
    first, _, rest = example_of(bundle).partition("\n")
    assert first.startswith("import meteora_registry.runtime")
    return warm.run([sys.executable, "-c", WITHOUT_FIRST_LINE, first, rest], capture_output=True, text=True)


def test_card_without_its_first_line_stops_as_it_says(
    bundle: Path, without_first_line: subprocess.CompletedProcess[str]
) -> None:
    assert without_first_line.stderr.endswith("KeyError: 'METEORA'\n")
    assert "`KeyError: 'METEORA'`" in (bundle / "README.md").read_text()


def test_first_line_adds_one_type_to_peft_and_replaces_nothing(
    without_first_line: subprocess.CompletedProcess[str],
) -> None:
    assert without_first_line.stdout == "True True True\n"
