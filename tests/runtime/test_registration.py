"""The effect of ``import meteora_registry.runtime`` on PEFT, and its message without a recent PEFT.

``tests/docs/test_card.py`` has what it leaves as it is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import peft.mapping
import pytest
from peft.tuners.tuners_utils import BaseTuner

from meteora_registry.runtime import MeteoraConfig, MeteoraModel, register
from meteora_registry.schemas.errors import MissingDependency
from support import warm
from support.patience import PATIENCE_SECONDS


def entries() -> list[object]:
    mappings = (
        peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING,
        peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING,
        peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING,
    )
    return [mapping["METEORA"] for mapping in mappings]


def test_import_registers_the_type_once_and_for_all() -> None:
    assert entries() == [MeteoraConfig, MeteoraModel, "meteora_"]
    sizes = len(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING)
    register()
    assert len(peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING) == sizes
    assert entries() == [MeteoraConfig, MeteoraModel, "meteora_"]


# PEFT itself needs accelerate, so it is imported again, too.
@pytest.mark.parametrize("library", ["torch", "peft", "transformers", "accelerate"])
def test_missing_library_is_named_with_the_way_out(tmp_path: Path, library: str) -> None:
    code = f"""
import sys
from meteora_registry.schemas.errors import MissingDependency
for name in [name for name in sys.modules if name.startswith(("meteora_registry.runtime", "peft"))]:
    del sys.modules[name]
sys.modules[{library!r}] = None
try:
    import meteora_registry.runtime
except MissingDependency as error:
    print(error, error.hint, sep=chr(10))
"""
    with warm.RuntimePopen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        printed, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert printed.splitlines() == [
        f"loading a bundle needs `{library}`, which is not installed",
        'in the source folder of meteora-registry: pip install ".[runtime]"',
    ]


def test_peft_that_lets_no_tuner_check_its_tensors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(BaseTuner, "_remap_adapter_state_dict_for_load")
    with pytest.raises(MissingDependency, match=r"peft is \d+\.\d+\S*, expected 0.21 or later"):
        register()
