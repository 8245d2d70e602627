"""A bundle that the fuser wrote, as PEFT loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import force_adapter
from support.members import fuse, read_members
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_alone,
    make_llama_adapters,
    some_tokens,
    tiny_llama,
)

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]


@pytest.mark.parametrize("low_memory", [False, True], ids=["plain", "low-memory"])
def test_forced_member_of_a_fused_bundle_is_the_adapter_alone(tmp_path: Path, low_memory: bool) -> None:
    adapters = make_llama_adapters(tmp_path / "adapters", base="org/base")
    bundle = fuse(read_members(adapters), tmp_path / "bundles" / "bundle")
    model = PeftModel.from_pretrained(tiny_llama(), bundle, low_cpu_mem_usage=low_memory)
    for name, adapter in adapters.items():
        with torch.no_grad(), force_adapter(model, name):
            found = model(some_tokens()).logits
        assert relative_error(found, logits_alone(tiny_llama(), adapter, some_tokens())) <= 1e-5, name
