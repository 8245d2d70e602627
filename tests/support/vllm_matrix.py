"""One row for each adapter that a real vLLM engine was asked to load: its answer beside what was predicted.

The adapters are those of the verdict matrix, on bases whose heads are wide enough for the engine on a CPU.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor

from meteora_registry.registry.workflows.validation import ValidateOptions, validate
from meteora_registry.schemas.report import Purpose

from .models import some_tokens
from .task_data import tiny_tokenizer
from .verdict_files import FILE_CASES, FileCase, without
from .verdict_kinds import DENSE, TIED, Kind, answer, base_answer, text_model
from .verdict_matrix import train
from .verdict_options import CASES, Case
from .vllm_engine import Engine, EngineRefused

MAX_DIFFERENCE = 1e-3
MAX_RANK = 64
AS_PEFT, BASE, OTHER, REFUSED = "as PEFT", "the base's output", "another output", "refused"
RULES = re.compile("MR8")
# The engine's attention on a CPU takes heads of 32 and more.
_SIZES: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
LLAMA = replace(DENSE, build=text_model("LlamaForCausalLM", head_dim=32, **_SIZES))
TIED_LLAMA = replace(
    TIED, build=text_model("LlamaForCausalLM", head_dim=32, tie_word_embeddings=True, **_SIZES)
)
QWEN2 = replace(DENSE, name="qwen2", build=text_model("Qwen2ForCausalLM", **_SIZES))
# What the verdict matrix has no case for, because PEFT takes it.
_OF_ENGINES: tuple[Case | FileCase, ...] = (
    Case("a rank above the engine's", (), lambda _: {"r": MAX_RANK + 1}),
    Case("a rank above the engine's, of no module", (), lambda _: {"rank_pattern": {"absent": MAX_RANK + 1}}),
    Case("the engine's largest rank", (), lambda _: {"r": MAX_RANK}),
    FileCase("no targets in the config", without("target_modules")),
)
# Their answers are not numbers, which stay in the engine's cache and spoil the answers of later adapters.
_POISONOUS = ("one number is NaN", "bytes")
# Options in which a class that has no adapters for its vocabulary layers may differ.
_OF_CLASSES = ("a list", "all-linear", "embedding", "head", "embedding alone", "tied embedding, adapted")


@dataclass(frozen=True)
class Subject:
    """An adapter by the base's kind and what makes it."""

    kind: Kind
    case: Case | FileCase

    @property
    def name(self) -> str:
        """The subject's name in rows and in a test's report."""
        return f"file: {self.case.name}" if isinstance(self.case, FileCase) else self.case.name

    def write(self, folder: Path) -> Path | None:
        """Return the adapter's folder; None where PEFT does not make such an adapter."""
        original = self.case.original if isinstance(self.case, FileCase) else self.case
        options = original.options_for(self.kind)
        if options is None:
            return None
        with quiet():
            try:
                train(original, self.kind, options, folder)
            except Exception:  # noqa: BLE001 - whatever PEFT raises, it does not make this adapter
                return None
        if isinstance(self.case, FileCase):
            return self.case.write(folder, folder.with_name(f"{folder.name}-changed"))
        return folder


def subjects() -> Iterator[Subject]:
    """Yield every adapter, those of one base together."""
    file_cases = [case for case in FILE_CASES if case.name not in _POISONOUS]
    for kind, like in ((LLAMA, DENSE), (TIED_LLAMA, TIED)):
        yield from (Subject(kind, case) for case in CASES if like in case.kinds)
        yield from (Subject(kind, case) for case in file_cases if case.kind is like)
        yield from (Subject(kind, case) for case in _OF_ENGINES if kind is LLAMA)
    yield from (Subject(QWEN2, case) for case in CASES if case.name in _OF_CLASSES)


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore what PEFT and transformers warn of while they make and load what the matrix gives them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Predicted:
    """The answer of ``validate --for vllm``: the verdict's word, the outcome, and the rules about vLLM."""

    verdict: str
    outcome: str
    codes: str

    @classmethod
    def of(cls, folder: Path, base: Path) -> Predicted:
        """Judge an adapter beside its base."""
        options = ValidateOptions(purpose=Purpose.VLLM, base=str(base), max_lora_rank=MAX_RANK)
        (report,) = validate([folder], options).adapters
        codes = sorted({each.code for each in report.findings if RULES.match(each.code)})
        word = "sound" if report.verdict and report.verdict.sound else "broken"
        return cls(word, str(report.outcome), " ".join(codes))


@dataclass(frozen=True)
class ServedRow:
    """One adapter: what was predicted, what the engine made of it, and its reason if it refused."""

    base: str
    adapter: str
    verdict: str
    predicted: str
    codes: str
    engine: str
    reason: str = ""

    @property
    def name(self) -> str:
        """The row's name in a test's report."""
        return f"{self.base}: {self.adapter}"

    @property
    def breaks_the_law(self) -> bool:
        """Whether a sound adapter is not served as predicted: whole and as PEFT loads it, or not at all."""
        is_served = self.engine == AS_PEFT
        return self.verdict == "sound" and is_served != (self.predicted == "accepted")

    def cells(self) -> dict[str, str]:
        """Return the row as it is written."""
        return asdict(self)


def save_served_base(kind: Kind, folder: Path) -> Path:
    """Write a base with its weights and a tokenizer, as an engine reads it."""
    kind.model().save_pretrained(folder)
    tiny_tokenizer(eos_token="<s>").save_pretrained(folder)
    return folder


def prompts() -> list[list[int]]:
    """Return the sequences that adapters are compared on, whole and their first half."""
    tokens: list[list[int]] = some_tokens().tolist()
    return [row[:length] for row in tokens for length in (len(row) // 2, len(row))]


def next_scores(logits: Tensor) -> list[list[float]]:
    """Return the log probabilities of all tokens after each prompt, from logits of ``some_tokens``."""
    length = logits.shape[1]
    places = logits[:, [length // 2 - 1, length - 1]]
    found: list[list[float]] = places.log_softmax(-1).flatten(0, 1).tolist()
    return found


def alike(found: Sequence[Mapping[int, float]], expected: Sequence[Sequence[float]]) -> bool:
    """Return whether the likeliest tokens after each prompt have the expected log probabilities."""
    places = zip(found, expected, strict=True)
    return all(
        abs(score - scores[token]) <= MAX_DIFFERENCE for top, scores in places for token, score in top.items()
    )


def scores_of_peft(kind: Kind, folder: Path) -> list[list[float]] | None:
    """Return what PEFT answers with a saved adapter; None if it does not load it."""
    with quiet():
        try:
            return next_scores(answer(PeftModel.from_pretrained(kind.model(), folder), kind))
        except Exception:  # noqa: BLE001 - whatever PEFT raises, it does not load this adapter
            return None


def served(engine: Engine, kind: Kind, folder: Path) -> tuple[str, str]:
    """Return what the engine makes of an adapter, and its reason if it refuses."""
    loaded = engine.load(folder.name, folder)
    if loaded.status != 200:
        return REFUSED, _reason(loaded.message)
    try:
        found = engine.next_tokens(folder.name, prompts())
    except EngineRefused as error:
        return REFUSED, _reason(str(error))
    finally:
        engine.unload(folder.name)
    expected = scores_of_peft(kind, folder)
    if expected is not None and alike(found, expected):
        return AS_PEFT, ""
    return (BASE if alike(found, next_scores(base_answer(kind))) else OTHER), ""


def _reason(message: str) -> str:
    inner = re.search(r"Worker failed with error '(.*)', please check", message, re.DOTALL)
    # A set is written in another order in every process.
    text = re.sub(r"target modules in \{[^}]*\}", "target modules", inner[1] if inner else message)
    return text[:160]


def row_of(engine: Engine, subject: Subject, folder: Path, base: Path) -> ServedRow | None:
    """Return the row of an adapter; None where PEFT does not make it."""
    written = subject.write(folder)
    if written is None:
        return None
    predicted = Predicted.of(written, base)
    outcome, reason = served(engine, subject.kind, written)
    return ServedRow(
        subject.kind.name,
        subject.name,
        predicted.verdict,
        predicted.outcome,
        predicted.codes,
        outcome,
        reason,
    )
