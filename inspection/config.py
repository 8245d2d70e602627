"""An adapter's config as it was written: no field is filled in, and none is trusted.

``Config`` gives the fields that matter for the arithmetic, or None where a field has no usable
value. The rules report what is wrong with a field.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..schemas.quotation import escape
from ..schemas.trained_on import HEADLESS_TASK, TrainedOn
from .patterns import Budget, Pattern, PatternList, PatternsTooCostly

# Fields of LoraConfig in PEFT 0.21.2. A test compares them with the installed PEFT.
KNOWN_FIELDS = frozenset(
    # A list would take fifty lines.
    """
    alora_invocation_tokens alpha_pattern arrow_config auto_mapping base_model_name_or_path bias corda_config
    ensure_weight_tying eva_config exclude_modules fan_in_fan_out inference_mode init_lora_weights kasa_config
    layer_replication layers_pattern layers_to_transform loftq_config lora_alpha lora_bias lora_dropout
    lora_ga_config megatron_config megatron_core modules_to_save monteclora_config peft_type peft_version
    qalora_group_size r rank_pattern revision runtime_config target_modules target_parameters task_type
    trainable_token_indices use_bdlora use_dora use_qalora use_rslora velora_config
    """.split()  # noqa: SIM905
)
PEFT_TYPE = "LORA"
SCALE_FIELDS = ("rank_pattern", "alpha_pattern")
HEAD_TASKS = frozenset({"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
TASK_TYPES = HEAD_TASKS | {"SEQ_2_SEQ_LM", "CAUSAL_LM", HEADLESS_TASK}
MAX_RANK = 1 << 20


@dataclass(frozen=True)
class Config:
    """A parsed ``adapter_config.json``: any JSON object."""

    value: dict[str, Any]
    budget: Budget = field(default_factory=Budget, compare=False)

    @property
    def is_lora(self) -> bool:
        """Whether the config declares a LoRA adapter."""
        return self.value.get("peft_type") == PEFT_TYPE

    def text(self, name: str) -> str | None:
        """Return a field that holds text, escaped; None for any other."""
        found = self.value.get(name)
        return escape(found, limit=512) if isinstance(found, str) and found else None

    @property
    def rank(self) -> int | None:
        """``r``, if it is a rank."""
        return as_rank(self.value.get("r"))

    @property
    def alpha(self) -> float | None:
        """``lora_alpha``, if it is a number other than zero."""
        return as_alpha(self.value.get("lora_alpha"))

    @property
    def uses_rslora(self) -> bool:
        """Whether the scaling is alpha / sqrt(rank)."""
        return self.value.get("use_rslora") is True

    def patterns(self, name: str) -> dict[str, Any]:
        """Return ``rank_pattern`` or ``alpha_pattern``; empty if it is not an object."""
        found = self.value.get(name)
        return found if isinstance(found, dict) else {}

    @cached_property
    def declared_patterns(self) -> list[tuple[str, Pattern]]:
        """Every pattern of the config with its field; equal texts share one pattern."""
        known: dict[str, Pattern] = {}
        found = []
        with self.budget.running():
            for place, text in self._pattern_texts():
                if text not in known:
                    known[text] = Pattern.judge(text, self.budget)
                found.append((place, known[text]))
        return found

    def _pattern_texts(self) -> Iterator[tuple[str, str]]:
        for name in SCALE_FIELDS:
            yield from ((name, text) for text in self.patterns(name))
        for name in ("target_modules", "exclude_modules", "layers_pattern"):
            found = self.value.get(name)
            if isinstance(found, str) and found:
                yield name, found
        yield from (("layers_pattern", text) for text in names_in(self.value.get("layers_pattern")) if text)
        yield from (("modules_to_save", text) for text in self.saved_modules if text)

    def patterns_in(self, name: str) -> list[Pattern]:
        """Return the patterns of one field in their order."""
        return [pattern for place, pattern in self.declared_patterns if place == name]

    @property
    def targets(self) -> tuple[str, ...] | None:
        """``target_modules`` as a list of names, if it is one."""
        found = self.value.get("target_modules")
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return tuple(found)
        return None

    @property
    def has_head(self) -> bool:
        """Whether PEFT saves a newly trained head for this kind of task."""
        task = self.value.get("task_type")
        return isinstance(task, str) and task in HEAD_TASKS

    @property
    def trained_on(self) -> TrainedOn:
        """The model that the adapter was trained on."""
        return TrainedOn.read(self.value.get("task_type"), self.value.get("auto_mapping"))

    @property
    def saved_modules(self) -> tuple[str, ...]:
        """``modules_to_save``."""
        return names_in(self.value.get("modules_to_save"))


@dataclass(frozen=True)
class LoraConfig(Config):
    """The config of a LoRA adapter; ``has_tensors`` where the tensors can be asked instead."""

    has_tensors: bool = False


@dataclass(frozen=True, slots=True)
class Resolution:
    """Rank and alpha of each module by the config, or that they could not be determined.

    ``used`` holds field and text of the patterns that some module took; ``is_complete`` is false if
    matching took too long.
    """

    ranks: dict[str, int | None]
    alphas: dict[str, float | None]
    used: frozenset[tuple[str, str]]
    is_complete: bool

    @classmethod
    def of(cls, config: Config, paths: Mapping[str, str]) -> Resolution:
        """Return ranks and alphas as PEFT 0.21.2 resolves them.

        Args:
            config: with the ranks, the alphas and their patterns.
            paths: each module, and the path that patterns are compared with.
        """
        ranks: dict[str, int | None] = dict.fromkeys(paths, config.rank)
        alphas: dict[str, float | None] = dict.fromkeys(paths, config.alpha)
        rank_values, alpha_values = (config.patterns(name) for name in SCALE_FIELDS)
        rank_patterns, alpha_patterns = (PatternList(config.patterns_in(name)) for name in SCALE_FIELDS)
        if not rank_patterns and not alpha_patterns:
            return cls(ranks, alphas, frozenset(), is_complete=True)
        used = set()
        try:
            with config.budget.running():
                for path, compared in paths.items():
                    rank_key = rank_patterns.first(compared, config.budget)
                    alpha_key = alpha_patterns.first(compared, config.budget)
                    if rank_key:
                        ranks[path] = as_rank(rank_values[rank_key.text])
                        used.add((SCALE_FIELDS[0], rank_key.text))
                    if alpha_key:
                        alphas[path] = as_alpha(alpha_values[alpha_key.text])
                        used.add((SCALE_FIELDS[1], alpha_key.text))
        except PatternsTooCostly:
            return cls({}, {}, frozenset(), is_complete=False)
        # A pattern that is not evaluated here may match in PEFT, so that nothing is known of any module.
        if not rank_patterns.are_evaluated:
            ranks = dict.fromkeys(paths)
        if not alpha_patterns.are_evaluated:
            alphas = dict.fromkeys(paths)
        return cls(ranks, alphas, frozenset(used), is_complete=True)


def names_in(value: Any) -> tuple[str, ...]:
    """Return the texts of a list; none of anything else."""
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, list) else ()


def as_rank(value: Any) -> int | None:
    """Return the value if it is an integer from 1 on, which can be a rank; else None."""
    return value if type(value) is int and 1 <= value <= MAX_RANK else None


def as_alpha(value: Any) -> float | None:
    """Return the value as a number if it is finite and not zero; else None."""
    if type(value) not in (int, float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number != 0 else None


def scale(alpha: float, rank: int, *, rslora: bool) -> float:
    """Return alpha / rank, or alpha / sqrt(rank) with rsLoRA (Kalajdzievski, arXiv 2312.03732)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank
