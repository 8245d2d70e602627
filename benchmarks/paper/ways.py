"""The ways of serving that are compared, and the model that each of them needs.

Most run on a bundle, with its own gates or others in their place. Three are merges or adapters that PEFT
alone serves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from benchmarks.gates.base import load_tokenizer
from benchmarks.gates.ways import average_by_peft
from meteora_registry.bundle import Bundle
from meteora_registry.runtime import RoutingRecord, force_adapter, load_bundle, route_as, routing, uniform
from meteora_registry.runtime.loaded_bundle import LoadedBundle
from meteora_registry.schemas.gate_choices import DEFAULT_ABSTAIN, Scope

from .fits import FIT_ITEMS, MORE_SAMPLES, SGD_TOP_1, SGD_TOP_2
from .training import LORA_B, LORA_F

Kind = Literal[
    "majority", "base", "likelihood", "member", "routed", "uniform", "centroid", "weighted", "adapter"
]
UNFITTED = "arrow"


@dataclass(frozen=True, slots=True)
class Way:
    """One way of serving.

    Attributes:
        name: in rows and tables.
        kind: who answers: the task's most frequent answer, the base, the base by the likelihood of each
            choice, the task's own member, the gates of a bundle, all members with equal weights, the member
            whose prompts' mean embedding is the nearest, PEFT's weighted adapter, or an adapter of PEFT's.
        folder: of the bundle or the adapter, by its name in the cache.
        scope: what one decision serves.
        abstain: the confidence below which the base answers.
    """

    name: str
    kind: Kind
    folder: str = UNFITTED
    scope: Scope | None = None
    abstain: float | None = None

    @property
    def is_routed(self) -> bool:
        """Whether gates decide."""
        return self.kind == "routed"


MAJORITY, BASE, LIKELIHOOD, MEMBER = "majority class", "base", "base by likelihood", "member forced"
CENTROID = "nearest centroid"
PROMPT = Way("prompt", "routed", "prompt", "prompt")
PROMPT_MORE = Way(f"prompt (--samples {FIT_ITEMS})", "routed", MORE_SAMPLES, "prompt")
CANDIDATES = (PROMPT, PROMPT_MORE)
"""Ways of which the better one is chosen on the validation items."""

WAYS = (
    Way(MAJORITY, "majority"),
    Way(BASE, "base"),
    Way(LIKELIHOOD, "likelihood"),
    Way(MEMBER, "member"),
    PROMPT,
    PROMPT_MORE,
    Way("prompt (5 % to the base)", "routed", "prompt", "prompt", abstain=DEFAULT_ABSTAIN),
    Way("prompt+token", "routed", "prompt+token", "prompt+token"),
    Way("segment", "routed", "segment", "segment"),
    Way("token", "routed", "token", "token"),
    Way("layer", "routed", "token", "layer"),
    Way("arrow", "routed", UNFITTED, "token"),
    Way("uniform", "uniform"),
    Way("weighted adapter", "weighted"),
    Way(CENTROID, "centroid"),
    Way("LoRA-F", "adapter", LORA_F),
    Way("LoRA-B", "adapter", LORA_B),
    Way("trained gates top-1", "routed", SGD_TOP_1, "token"),
    Way("trained gates top-2", "routed", SGD_TOP_2, "token"),
)


class Models:
    """The base with one bundle or adapter at a time, loaded when a way needs another than the last.

    Args:
        base: on which everything is loaded; it knows the folder of its tokenizer.
        bundles: folders of bundles by name.
        adapters: the members' folders by task.
        joint: folders of the adapters that PEFT loads alone, by name.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        bundles: Mapping[str, Path],
        adapters: Mapping[str, Path],
        joint: Mapping[str, Path],
    ) -> None:
        self._base = base
        self._bundles, self._adapters, self._joint = bundles, adapters, joint
        self._name: tuple[str, str] | None = None
        self._loaded: LoadedBundle | None = None

    def loaded_for(self, way: Way) -> LoadedBundle:
        """Return what a way runs on."""
        source = way.kind if way.kind in ("weighted", "adapter") else "bundle"
        name = (source, way.folder)
        if self._loaded is None or name != self._name:
            self._unload()
            self._loaded, self._name = self._load(source, way.folder), name
        return self._loaded

    def _load(self, source: str, name: str) -> LoadedBundle:
        if source == "bundle":
            return load_bundle(self._bundles[name], self._base)
        config = Bundle.open(self._bundles[UNFITTED]).config
        if source == "weighted":
            model = average_by_peft(self._base, dict(self._adapters))
        else:
            model = PeftModel.from_pretrained(self._base, self._joint[name]).eval()
        # An adapter of PEFT's own is asked in the very same way; nothing then reads the config.
        return LoadedBundle(model, load_tokenizer(Path(self._base.name_or_path)), config)

    def _unload(self) -> None:
        if self._loaded is not None:
            self._base = self._loaded.model.unload()
            if hasattr(self._base, "peft_config"):
                del self._base.peft_config
            self._loaded = None


@contextmanager
def served(model: PeftModel, way: Way, member: str | None) -> Iterator[RoutingRecord | None]:
    """Serve prompts in a way within the block; yield the record of the routing where gates decide.

    Args:
        model: what the way runs on.
        way: who serves.
        member: that answers, for the kinds that name one.
    """
    if way.kind in ("weighted", "adapter"):
        yield None
    elif way.kind in ("base", "likelihood"):
        with model.disable_adapter():
            yield None
    elif way.kind == "uniform":
        with uniform(model):
            yield None
    elif member is not None:
        with force_adapter(model, member):
            yield None
    else:
        with route_as(model, scope=way.scope, abstain=way.abstain), routing(model) as record:
            yield record


@torch.no_grad()
def embed(loaded: LoadedBundle, prompts: Sequence[str]) -> torch.Tensor:
    """Return the mean of the base's last hidden state over each prompt, of length 1, float32 ``[B, h]``."""
    batch = loaded.encode(list(prompts), padding=True)
    with loaded.model.disable_adapter():
        inner = loaded.model.get_base_model().base_model
        hidden = inner(**batch, use_cache=False).last_hidden_state.float()
    weights = batch["attention_mask"].unsqueeze(-1).float()
    return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def nearest(embeddings: torch.Tensor, centres: torch.Tensor) -> list[int]:
    """Return for each of the embeddings ``[B, h]`` the place of the centre ``[L, h]`` nearest by cosine."""
    cosines = embeddings @ torch.nn.functional.normalize(centres, dim=-1).T
    return [int(place) for place in cosines.argmax(dim=1)]
