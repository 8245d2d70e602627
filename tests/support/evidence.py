"""Adapters as PEFT loads them, for the tests that show what the refusing rules prevent.

``lose`` is the arithmetic of a bundle, W x + s B A x of the linear modules in the file. Where a verdict is
*not fusable*, it gives another answer than PEFT does, or cannot be formed at all.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from .adapters import AdapterFiles
from .defects import DEFECTS
from .models import logits_of, make_adapter, tiny_llama

OPTIONS = {"r": 4, "lora_alpha": 20, "target_modules": ["q_proj", "v_proj"]}
SCALING = 5.0
# What makes a difference; equal results differ by far less.
VISIBLE = 1e-2
EQUAL = 1e-5
PREFIX = "base_model.model."
_DEFECTS = {defect.name: defect for defect in DEFECTS}


@cache
def _good_files() -> AdapterFiles:
    with tempfile.TemporaryDirectory() as folder:
        return AdapterFiles.read(make_adapter(tiny_llama, Path(folder), seed=1, base="org/base", **OPTIONS))


def good_files() -> AdapterFiles:
    """Return a sound adapter of the tiny Llama, to change."""
    return copy.deepcopy(_good_files())


def defective_files(name: str) -> AdapterFiles:
    """Return the sound adapter with the defect of that name."""
    files = good_files()
    _DEFECTS[name].change(files)
    return files


def defect_of_rule(code: str, name: str) -> object:
    """Return the case of a parametrised test that shows this rule by the defect of that name."""
    assert code in _DEFECTS[name].codes, name
    return pytest.param(name, marks=pytest.mark.rule(code), id=name)


def trained(options: PeftConfig, base: PreTrainedModel) -> PreTrainedModel:
    """Return the base with an adapter of these options in which everything trainable has moved."""
    model = get_peft_model(base, options)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def save(model: PreTrainedModel, folder: Path) -> AdapterFiles:
    """Write the adapter as PEFT writes it, and read the files."""
    model.save_pretrained(folder, save_embedding_layers=False)
    return AdapterFiles.read(folder)


def load(folder: Path, base: PreTrainedModel | None = None) -> PeftModel:
    """Return the model that PEFT makes of a folder, whatever it warns; on the tiny Llama unless stated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(tiny_llama() if base is None else base, folder)


def peft_logits(files: AdapterFiles, folder: Path) -> torch.Tensor:
    """Return the logits that PEFT gives with these files on the tiny Llama."""
    return logits_of(load(files.write(folder)))


@cache
def base_logits() -> torch.Tensor:
    """Return the logits of the tiny Llama alone."""
    return logits_of(tiny_llama())


@cache
def good_logits() -> torch.Tensor:
    """Return the logits that PEFT gives with the sound adapter."""
    with tempfile.TemporaryDirectory() as folder:
        return peft_logits(good_files(), Path(folder))


def lose(files: AdapterFiles, base: PreTrainedModel) -> PreTrainedModel:
    """Return the base with s B A added to its linear modules, all that a bundle would carry over."""
    modules = dict(base.named_modules())
    with torch.no_grad():
        for name in files.names("lora_A.weight"):
            path = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            product = files.tensors[name.replace("lora_A", "lora_B")] @ files.tensors[name]
            modules[path].weight += SCALING * product
    return base


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of an element."""
    return (one - other).abs().max().item()
