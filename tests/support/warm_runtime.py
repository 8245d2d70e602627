"""The initial state of what loads a bundle: imported what that takes, which is seconds of every such program.

A server of its own, because a fork of this much memory costs twice that of the other; it is forked from that
one, so that it imports nothing again.
"""

from __future__ import annotations

import gc
import importlib

import torch

torch.set_num_threads(1)
for _name in (
    "registry.catalog.catalog",
    "registry.cli.chat",
    "registry.cli.main",
    "registry.cli.serve",
    "registry.workflows.base_place",
    "registry.workflows.conversation",
    "registry.workflows.engine_backend",
    "registry.workflows.inference",
    "runtime.evaluation.processes",
    "serving.app",
    "serving.batches",
    "serving.server",
):
    importlib.import_module(f"meteora_registry.{_name}")
for _name in ("utils.chat_template_utils", "models.llama.modeling_llama", "models.auto.modeling_auto"):
    importlib.import_module(f"transformers.{_name}")
gc.collect()
gc.freeze()
