"""vLLM's own classes say of adapters what the rules say of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from meteora_registry.inspection.vllm import (
    ALLOWED_RANKS,
    DEFAULT_MAX_RANK,
    WITHOUT_ADAPTERS,
    WITHOUT_VOCABULARY_LAYERS,
)
from support.models import save_base, tiny_gpt2
from support.task_data import tiny_tokenizer
from support.vllm_engine import EngineRefused, serve_base

WITH_BOTH = {"LlamaForCausalLM", "Qwen3ForCausalLM"}
SCRIPT = """
import json, sys, typing
from vllm.config.lora import LoRAConfig, MaxLoRARanks
from vllm.model_executor.models.interfaces import supports_lora
from vllm.model_executor.models.registry import ModelRegistry

found = {}
for name in sys.argv[1:]:
    loaded = ModelRegistry._try_load_model_cls(name)
    found[name] = [bool(supports_lora(loaded)), bool(getattr(loaded, "embedding_modules", None))]
ranks = {"ranks": typing.get_args(MaxLoRARanks), "rank": LoRAConfig().max_lora_rank}
print(json.dumps({"classes": found} | ranks))
"""


def test_classes_and_ranks_are_those_of_the_installed_vllm(program: Path) -> None:
    names = sorted(WITHOUT_ADAPTERS | WITHOUT_VOCABULARY_LAYERS | WITH_BOTH)
    command = [str(program.with_name("python")), "-P", "-c", SCRIPT, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert (tuple(found["ranks"]), found["rank"]) == (ALLOWED_RANKS, DEFAULT_MAX_RANK)
    classes = {name: tuple(said) for name, said in found["classes"].items()}
    expected = dict.fromkeys(WITHOUT_VOCABULARY_LAYERS, (True, False)) | dict.fromkeys(
        WITH_BOTH, (True, True)
    )
    assert {name: classes[name] for name in expected} == expected
    assert {name for name in WITHOUT_ADAPTERS if classes[name][0]} == set()


def test_engine_does_not_start_with_adapters_on_a_class_without_them(program: Path, tmp_path: Path) -> None:
    assert "GPT2LMHeadModel" in WITHOUT_ADAPTERS
    base = save_base(tiny_gpt2(width=128), tmp_path / "base")
    tiny_tokenizer(eos_token="<s>").save_pretrained(base)
    with (
        pytest.raises(EngineRefused),
        serve_base(program, base, tmp_path / "engine", "--max-lora-rank", "64"),
    ):
        pass
    assert "GPT2LMHeadModel does not support LoRA" in (tmp_path / "engine" / "vllm.log").read_text()
