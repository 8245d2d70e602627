"""The modules and parameters that a config declares, matched as PEFT 0.21.2 matches them.

PEFT builds layers for what the config declares and ignores all other tensors of the file. Names are compared
as texts; an expression is matched by ``Pattern``, in bounded time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .config import Config, names_in
from .patterns import Budget, Pattern, tails_of

ALL_LINEAR = "all-linear"
# Modules register their parameters in this order, which is that in which PEFT wraps them.
_REGISTRATION_ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj")
# What PEFT adds to `modules_to_save` for a task that needs a head of its own.
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
# What transformers 4.52 put in front of the module paths of vision-language models, old and new. A config may
# declare either, and PEFT compares it with the base's.
_RENAMED_BEGINNINGS = (
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
    ("model.", "model.language_model."),
    ("vision_tower.", "model.vision_tower."),
    ("vision_model.", "model.vision_model."),
    ("visual.", "model.visual."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)
_STILL_IN_USE = frozenset({"model.", "vision_model."})


class NotMatched(Exception):
    """The declaration cannot be compared with module paths: nothing bounded reads it, or the base decides."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names that PEFT compares with a module path as a whole or with its end after a dot."""

    names: frozenset[str]
    _depths: tuple[int, ...]

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Keep the names, with the numbers of dots that occur in them."""
        kept = frozenset(names)
        return cls(kept, tuple(sorted({name.count(".") for name in kept})))

    def found_in(self, path: str) -> list[str]:
        """Return the names that a path is, or ends with."""
        if not self.names:
            return []
        if self._depths == (0,):
            ends = [path.rpartition(".")[2]]
        else:
            parts = path.split(".")
            ends = [".".join(parts[-depth - 1 :]) for depth in self._depths if depth < len(parts)]
        return [end for end in ends if end in self.names]


@dataclass(frozen=True, slots=True)
class SavedModules:
    """The modules that are saved whole: those of ``modules_to_save``, and the head that the task brings."""

    patterns: tuple[Pattern, ...]
    budget: Budget
    _names: frozenset[str] = field(init=False)
    _others: tuple[Pattern, ...] = field(init=False)

    def __post_init__(self) -> None:
        plain = [each for each in self.patterns if "." not in each.text and each.is_plain]
        names = frozenset(each.text for each in plain)
        others = tuple(each for each in self.patterns if each.text not in names and each.can_match)
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_others", others)

    @classmethod
    def of(cls, config: Config, *, with_head: bool = True) -> SavedModules:
        """Return those of a config."""
        patterns = config.patterns_in("modules_to_save")
        task = config.value.get("task_type")
        heads = _HEADS.get(task, ()) if with_head and isinstance(task, str) else ()
        return cls((*patterns, *(Pattern.judge(head) for head in heads)), config.budget)

    def hold(self, path: str) -> bool:
        r"""Return whether a path is that of one of them or of a part: ``(^|.*\.)NAME($|\..*)`` in PEFT."""
        if self._names and not self._names.isdisjoint(path.split(".")):
            return True
        if not self._others:
            return False
        with self.budget.running():
            for beginning in _beginnings_of(path):
                for pattern in self._others:
                    if self.budget.is_spent:
                        return False
                    if pattern.matches_tail(beginning):
                        return True
        return False


@dataclass(frozen=True, slots=True)
class TargetParameters:
    """The bare parameters that a config targets, by the end of their module's path."""

    by_parent: Mapping[str, tuple[str, ...]]
    modules: Names
    expression: Pattern | None

    @classmethod
    def of(cls, config: Config) -> TargetParameters:
        """Return those of a config."""
        by_parent: dict[str, tuple[str, ...]] = {}
        for name in sorted(set(names_in(config.value.get("target_parameters")))):
            parent, _, leaf = name.rpartition(".")
            by_parent[parent] = (*by_parent.get(parent, ()), leaf)
        text = (
            config.patterns_in("target_modules")
            if isinstance(config.value.get("target_modules"), str)
            else []
        )
        expression = text[0] if by_parent and text and text[0].can_match else None
        return cls(by_parent, Names.of(config.targets or ()), expression)

    def of_module(self, path: str, count: int) -> tuple[str, ...] | None:
        """Return the names of the ``count`` parameters of a module that are adapted, in their order there.

        None if the config does not target so many of its parameters, or names too many to choose from.
        """
        if not self.by_parent:
            return None
        leaves = {leaf for tail in tails_of(path) for leaf in self.by_parent.get(tail, ())}
        # A name alone is that of a parameter anywhere, but not in a module that is targeted itself.
        if count > 1 or (not leaves and not self._target(path)):
            leaves |= set(self.by_parent.get("", ()))
        known = [leaf for leaf in _REGISTRATION_ORDER if leaf in leaves]
        if len(leaves) != count or (count > 1 and len(known) != count):
            return None
        return tuple(known) if count > 1 else tuple(leaves)

    def _target(self, path: str) -> bool:
        is_matched = self.expression is not None and self.expression.matches(path)
        return is_matched or bool(self.modules.found_in(path))


class Declaration:
    """The modules that ``target_modules`` and the fields beside it declare."""

    def __init__(self, config: Config, *, default: Iterable[str] | None = None) -> None:
        """Read a declaration.

        Args:
            config: the adapter's.
            default: what PEFT takes for the architecture of the base where a config names no targets.

        Raises:
            NotMatched: it cannot be compared with paths here.
        """
        self._budget = config.budget
        self._saved = SavedModules.of(config)
        declared = config.value.get("target_modules")
        self._text: Pattern | None = None
        self._names = Names.of(())
        if isinstance(declared, str) and declared == ALL_LINEAR:
            raise NotMatched
        if isinstance(declared, str):
            patterns = config.patterns_in("target_modules")
            self._text = _require(patterns[0]) if patterns else None
        elif config.targets is not None:
            self._names = Names.of(config.targets)
        elif declared is not None or (default is None and not config.value.get("target_parameters")):
            raise NotMatched
        elif not config.value.get("target_parameters"):
            self._names = Names.of(default or ())
        self._read_exclusions(config)
        self._read_layers(config)

    def _read_exclusions(self, config: Config) -> None:
        excluded = config.value.get("exclude_modules")
        self._excluded_text = (
            _require(config.patterns_in("exclude_modules")[0])
            if isinstance(excluded, str) and excluded
            else None
        )
        self._excluded = Names.of(names_in(excluded))

    def _read_layers(self, config: Config) -> None:
        found = config.value.get("layers_to_transform")
        layers = found if isinstance(found, list) else [found]
        self._layers = {layer for layer in layers if type(layer) is int} if found not in (None, []) else None
        self._layer_patterns = [_require(pattern) for pattern in config.patterns_in("layers_pattern")]

    def names(self, path: str) -> bool:
        """Return whether PEFT adapts a module at this path.

        Call it within the config's ``budget.running()``.

        Raises:
            NotMatched: the time for patterns is used up.
        """
        if self._budget.is_spent:
            raise NotMatched
        if self._excluded.found_in(path) or (self._excluded_text and self._excluded_text.matches(path)):
            return False
        if self._text is not None:
            return self._text.matches(path) and not self._saved.hold(path)
        if not self._names.found_in(path) or self._saved.hold(path):
            return False
        return self._layers is None or self._layer_of(path) in self._layers

    def _layer_of(self, path: str) -> int | None:
        parts = path.split(".")
        # PEFT's expression expects two names before the number unless a pattern names them.
        for position in range(1 if self._layer_patterns else 2, len(parts) - 1):
            if parts[position].isdecimal():
                before = ".".join(parts[:position])
                if not self._layer_patterns or any(
                    each.matches_tail(before) for each in self._layer_patterns
                ):
                    return int(parts[position][:9])
        return None


def present_names(path: str) -> list[str]:
    """Return a module path and what transformers may call it today."""
    renamed = [new + path.removeprefix(old) for old, new in _RENAMED_BEGINNINGS if path.startswith(old)]
    return [path, *renamed]


def is_renamed_path(path: str) -> bool:
    """Return whether a module path begins as transformers 4.51 and before named parts of larger models.

    Beginnings that some models have to this day prove nothing, so they do not count.
    """
    return any(path.startswith(old) for old, _ in _RENAMED_BEGINNINGS if old not in _STILL_IN_USE)


def _beginnings_of(path: str) -> Iterable[str]:
    """Yield a path, and its part before each dot."""
    yield path
    position = path.rfind(".")
    while position >= 0:
        yield path[:position]
        position = path.rfind(".", 0, position)


def _require(pattern: Pattern) -> Pattern:
    if not pattern.can_match:
        raise NotMatched
    return pattern
