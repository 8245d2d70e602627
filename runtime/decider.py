"""The decision about a request by itself: the base's first layers, and of a bundle the gates that read them.

A process that hands requests to engines has no use for the rest of the model. What decides in scope `prompt`
is read from the inputs of a few modules, so only the layers up to the last of them are loaded, without the
head and without A and B, and a pass ends at the last input that counts. The decision is the one that the
whole model makes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..bundle import Bundle
from ..kernels.routing import Gate
from ..schemas.bundle import (
    REQUEST_TENSORS,
    TENSOR_GATE,
    TENSOR_GATE_BIAS,
    WEIGHTS_FILE,
    BundleConfig,
    TemplateTokens,
    tensor_name,
)
from ..schemas.errors import BundleRefused, SourceUnreadable
from .base_model import bounded_modules, context_of, open_base, read_pretrained, translated_failures
from .base_modules import vocabulary_of
from .fitting.inputs import check_shapes
from .peft_config import warn_of_other_base, warn_unless_fitted
from .requirements import check_folder, check_gates
from .scopes.decision import Decision, Stretch
from .scopes.passes import Evidence, ObservedPass
from .scopes.prompt import PromptDecision, outside_template
from .scopes.request_gate import Gram, ObservedRequestPass, RequestEvidence, RequestGate
from .scopes.routing_rule import RoutingRule
from .shortened import first_layers


class _EverythingRead(BaseException):
    """Ends a pass whose last input was read; no model may catch it."""


@dataclass(frozen=True, slots=True)
class FirstLayers:
    """The first layers of a base, as far as some modules are in them.

    Attributes:
        model: the part of the base that runs.
        modules: the modules whose inputs are read, by their paths in the whole base.
        layers: how many layers there are; None if the whole base was loaded.
    """

    model: PreTrainedModel
    modules: Mapping[str, nn.Module]
    layers: int | None


@dataclass(frozen=True, slots=True)
class RequestDecider:
    """A bundle's decision about requests, without the model that answers them.

    Attributes:
        members: of the bundle.
        rule: by which it decides.
        tokenizer: the base's.
        base: the layers that are read.
    """

    members: tuple[str, ...]
    rule: RoutingRule
    tokenizer: PreTrainedTokenizerBase
    base: FirstLayers
    _template: TemplateTokens | None
    _gates: Mapping[str, Gate]
    _request_gates: Mapping[str, RequestGate]
    _turn: threading.Lock

    @property
    def vocabulary(self) -> int | None:
        """How many tokens the base knows; None if it does not state it."""
        return vocabulary_of(self.base.model)

    @property
    def context(self) -> int | None:
        """How many tokens the base takes at once; None if it states no bound."""
        return context_of(self.base.model.config)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text as the loaded model reads it."""
        with self._turn:
            ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        return ids

    def decide(self, prompts: Sequence[Sequence[int]]) -> list[Decision]:
        """Return the decision for each prompt, given as tokens of the vocabulary; several are one batch.

        Any thread may call it; they take turns, since each pass uses all cores.
        """
        if not prompts:
            return []
        ids, own = _padded(prompts)
        with self._turn, torch.no_grad():
            evidence = self._read(ids, own)
        counted = None
        if self._template is not None and self._request_gates:
            counted = outside_template(ids, own, self._template)
        stretch = Stretch(own, own, has_prompt=True, counted=counted)
        decided = PromptDecision.decide(self.rule, evidence, stretch)
        return list(decided.describe(self.members, ids.shape[1]))

    def _read(self, ids: Tensor, own: Tensor) -> Tensor:
        """Return the evidence [B, T, classes] of tokens [B, T]."""
        reading: ObservedPass | ObservedRequestPass
        batch, tokens = ids.shape
        if self._request_gates:
            reading = ObservedRequestPass(RequestEvidence(batch, tokens, self._request_gates))
        else:
            evidence = Evidence(batch, tokens, len(self.members))
            reading = ObservedPass(evidence, frozenset(self.base.modules))
        with _read_by(reading, self.base.modules, self._gates), suppress(_EverythingRead):
            self.base.model(input_ids=ids, attention_mask=own.long(), use_cache=False)
        return reading.evidence.mean


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return tokens [B, T], T at least 1, and which of them are a prompt's own."""
    # On the right, where the padding changes no position: causal attention never sees it.
    ids = torch.zeros(len(prompts), max(1, *map(len, prompts)), dtype=torch.int64)
    own = torch.zeros_like(ids, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.int64)
        own[row, : len(prompt)] = True
    return ids, own


def open_decider(
    folder: str | os.PathLike[str],
    base: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
) -> RequestDecider:
    """Load what decides about requests: a bundle's gates, and the layers of its base that they read.

    Where gates in every layer decide, all layers are loaded; request gates, as ``gate fit`` makes them, are
    in the first half of the base.

    Args:
        folder: the bundle.
        base: the base's folder or its name on the Hub.
        dtype: the element type in which the layers are loaded; by default that of the base's files.

    Raises:
        BundleRefused: it is not a bundle of a known format, it does not decide once for a request, or it does
            not fit the base.
        InvalidDocument: its config breaks the schema.
        SourceUnreadable: a file of the bundle or the base is missing or cannot be read.
    """
    bundle = Bundle.open(folder)
    check_folder(bundle.folder)
    config = bundle.config
    _check_decides_requests(config)
    rule, name = RoutingRule.of(config), os.fspath(base)
    opened = open_base(name)
    if opened.config.is_encoder_decoder:
        raise BundleRefused(
            f"`{name}` reads a text with an encoder and writes another with a decoder, but the scope "
            "`prompt` decides by one text that all gates read"
        )
    request = rule.by_request_gates
    paths = _read_paths(config, rule)
    gates, request_gates = _load_gates(bundle, paths, has_request_gates=request is not None)
    whole = _empty(name, opened.config)
    check_shapes(whole, bundle.shapes, config.observed)
    layers = load_first_layers(name, whole, paths, dtype=dtype)
    warn_of_other_base(layers.model, config)
    warn_unless_fitted(config, bundle.folder.name)
    return RequestDecider(
        members=config.names,
        rule=rule,
        tokenizer=opened.tokenizer,
        base=layers,
        _template=None if config.gate.request is None else config.gate.request.template,
        _gates=gates,
        _request_gates=request_gates,
        _turn=threading.Lock(),
    )


def _check_decides_requests(config: BundleConfig) -> None:
    scope = config.gate.scope
    if scope != "prompt":
        raise BundleRefused(
            f"the bundle's scope is `{scope}`, expected `prompt`: only there a request has one decision",
            hint="fit it with `meteora-registry gate fit --scope prompt`",
        )


def _read_paths(config: BundleConfig, rule: RoutingRule) -> tuple[str, ...]:
    request = rule.by_request_gates
    if request is not None:
        return request.modules
    if rule.evidence is not None:
        return rule.evidence
    return tuple(path for path in config.module_paths if config.has_gate(path))


def _load_gates(
    bundle: Bundle, paths: Sequence[str], *, has_request_gates: bool
) -> tuple[dict[str, Gate], dict[str, RequestGate]]:
    """Return the modules' own gates, or their request gates; nothing else of the weights is read."""
    config, gate = bundle.config, bundle.config.gate
    own = (TENSOR_GATE, TENSOR_GATE_BIAS) if gate.bias else (TENSOR_GATE,)
    names = REQUEST_TENSORS if has_request_gates else own
    with safe_open(bundle.folder / WEIGHTS_FILE, framework="pt") as file:
        found = {path: [file.get_tensor(tensor_name(path, name)) for name in names] for path in paths}
    check_gates(
        (tensor_name(path, name), tensor)
        for path, tensors in found.items()
        for name, tensor in zip(names, tensors, strict=True)
    )
    if has_request_gates:
        return {}, {
            path: RequestGate(rows, bias, Gram.of(values), kind=gate.kind, eps=gate.eps)
            for path, (rows, bias, values) in found.items()
        }
    gates = {
        path: Gate(
            weight=weight,
            bias=bias[0] if bias else None,
            kind=gate.kind,
            top_k=config.top_k,
            temperature=config.temperature,
            eps=gate.eps,
        )
        for path, (weight, *bias) in found.items()
    }
    return gates, {}


def _empty(name: str, config: PretrainedConfig) -> PreTrainedModel:
    """Return the whole base without memory."""
    what = f"`{name}` cannot be loaded as the base"
    with translated_failures(what), bounded_modules(name), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


def load_first_layers(
    name: str, whole: PreTrainedModel, paths: Sequence[str], *, dtype: torch.dtype | None = None
) -> FirstLayers:
    """Load a base as far as the layers that some modules are in.

    Args:
        name: the base's folder or its name on the Hub.
        whole: the base without memory.
        paths: the modules.
        dtype: of the layers; None for that of the files.

    Raises:
        SourceUnreadable: the weights are missing, or not those of the base.
    """
    prefix = f"{whole.base_model_prefix}."
    inside = all(path.startswith(prefix) for path in paths)
    body = cast("PreTrainedModel", whole.base_model) if inside else whole
    inner = {path: path.removeprefix(prefix) if body is not whole else path for path in paths}
    cut = first_layers(body, inner.values())
    options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    # A pickle is never loaded.
    model, report = read_pretrained(
        _cut_class(type(body), cut),
        name,
        config=body.config,
        use_safetensors=True,
        output_loading_info=True,
        **options,
    )
    if missing := sorted(report["missing_keys"]):
        raise SourceUnreadable(
            f"the weights of `{name}` lack {len(missing)} tensors of its layers, the first `{missing[0]}`"
        )
    modules = {path: model.get_submodule(within) for path, within in inner.items()}
    return FirstLayers(model.eval(), modules, None if cut is None else cut[1])


def _cut_class(kind: type[PreTrainedModel], cut: tuple[str, int] | None) -> type[PreTrainedModel]:
    """Return a class of models that have the first layers alone, and load no tensor of the others.

    Their config is that of the whole base: some models count layers from the end.
    """

    def make(self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        if cut is not None:
            stack, kept = cut
            del self.get_submodule(stack)[kept:]  # type: ignore[operator]  # a ModuleList

    members = {
        "__init__": make,
        "__module__": kind.__module__,
        # Of the files, all that is for other layers and for the head.
        "_keys_to_ignore_on_load_unexpected": [r".*"],
    }
    return type(kind.__name__, (kind,), members)


@contextmanager
def _read_by(
    reading: ObservedPass | ObservedRequestPass, modules: Mapping[str, nn.Module], gates: Mapping[str, Gate]
) -> Iterator[None]:
    """Let the inputs of modules be read within the block, until all of them were."""
    waiting = set(modules)

    def hook(path: str) -> Any:
        def read(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            reading.choose(path, positional[0] if positional else next(iter(named.values())), gates.get(path))
            waiting.discard(path)
            if not waiting:
                raise _EverythingRead

        return read

    handles = [
        module.register_forward_pre_hook(hook(path), with_kwargs=True) for path, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
