"""The speed of a routed model beside one PEFT LoRA, as ratios within one run: decoding and prefill.

SmolLM2-135M with eight LoRA adapters of rank 8 on all seven linears of each layer. Their factors are random,
since time does not depend on them; the gates are fitted by the project, on made-up questions. Beside ours in
each scope: the plain base, one LoRA in PEFT, and PEFT's own ways to use several, Arrow and X-LoRA.

All take turns in one process, in another order each time. Our modes share one model, but for `segment`, which
has a fit of its own; the others have one each. A decoded token is the mean of a few behind one prompt; a
prefill is one forward pass that leaves a cache and one row of logits, as ``generate`` does it.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftModel, XLoraConfig, create_arrow_model, get_peft_model
from peft.tuners.lora import ArrowConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import meteora_registry as meteora
from benchmarks.gates.base import prepare_base
from benchmarks.machine import description
from benchmarks.pages import Row, read_rows, with_section
from benchmarks.timing import Call, Quantiles, interleaved
from meteora_registry.runtime import force_adapter, load_bundle, route_as

ROWS = Path(__file__).parent / "results" / "speed.jsonl"
PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
START, END = "<!-- rows: written by benchmarks.speed -->", "<!-- end of rows -->"
MEMBERS, RANK = 8, 8
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT_TOKENS, DECODED_TOKENS = 128, 8
ONE_LORA = "one LoRA (PEFT)"
SCOPES = ("token", "layer", "prompt", "prompt+token", "segment")
# At most this many times one LoRA in PEFT.
GOALS = {
    "decode": {"forced": 1.0, "prompt": 1.0, "token": 1.1, "prompt+token": 1.1, "segment": 1.3},
    "prefill": {
        "forced": 1.2,
        "token": 1.2,
        "layer": 1.2,
        "prompt": 1.3,
        "prompt+token": 1.3,
        "segment": 1.6,
    },
}
QUESTIONS = (
    "Translate the word number {} into French.",
    "What is {} plus seven?",
    "Name city number {} of the list.",
    "Is sentence {} happy or sad?",
    "Write a function that returns {}.",
    "Which month is month {}?",
    "Correct the spelling of word {}.",
    "Give the JSON record of customer {}.",
)


def main(arguments: list[str]) -> None:
    """Measure and print rows, or write the page from the committed rows with ``--page``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run speed", description=__doc__)
    parser.add_argument("--page", action="store_true", help="write docs/speed.md's table and stop")
    parser.add_argument("--cache", type=Path, help="folder that keeps the base between runs")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--only", nargs="+", help="these variants, beside the base and PEFT's LoRA")
    parser.add_argument("--seconds", type=float, default=60, help="for each table")
    options = parser.parse_args(arguments)
    if options.page:
        PAGE.write_text(page_of(read_rows(ROWS)), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as scratch:
        cache = options.cache or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        setup = prepare(prepare_base(cache), cache / "speed")
        for dtype in options.dtypes:
            for row in measure(setup, getattr(torch, dtype), options.threads, options.only, options.seconds):
                print(json.dumps(row), flush=True)


@dataclass(frozen=True, slots=True)
class Setup:
    """The folders of a run."""

    base: Path
    adapters: tuple[Path, ...]
    bundle: Path
    segments: Path


def prepare(base: Path, folder: Path) -> Setup:
    """Return the folders of a base, of random adapters for it, and of their fitted bundle.

    They are made in ``folder`` on the first call.
    """
    adapters = tuple(folder / f"member{member}" for member in range(MEMBERS))
    bundle, segments, data = folder / "bundle", folder / "segments", folder / "data"
    if not bundle.exists():
        make_adapters(base, adapters)
        write_questions(adapters, data, QUESTIONS)
        fuse_adapters(base, adapters).fit(data).save(bundle)
    if not segments.exists():
        fuse_adapters(base, adapters).fit(data, scope="segment").save(segments)
    return Setup(base, adapters, bundle, segments)


def fuse_adapters(base: Path, adapters: tuple[Path, ...]) -> meteora.FusedBundle:
    """Return the bundle of adapters."""
    return meteora.fuse([str(adapter) for adapter in adapters], base=str(base))


def make_adapters(base: Path, folders: tuple[Path, ...]) -> None:
    """Write random LoRA adapters for a base."""
    torch.manual_seed(0)
    for folder in folders:
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS, task_type="CAUSAL_LM"),
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.01)
        model.save_pretrained(folder)


def write_questions(adapters: tuple[Path, ...], folder: Path, questions: Sequence[str]) -> None:
    """Write a folder with the lines to fit gates on, a file with one of the questions for each adapter."""
    folder.mkdir()
    for adapter, question in zip(adapters, questions, strict=True):
        lines = [json.dumps({"prompt": question.format(n), "response": " done"}) for n in range(32)]
        (folder / f"{adapter.name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Variant:
    """A model in one mode.

    Args:
        model: the model.
        mode: entered around each of its calls.
        caches: whether it decodes with a cache; X-LoRA in PEFT does not.
    """

    def __init__(
        self,
        model: Any,
        mode: Callable[[], AbstractContextManager[object]] = nullcontext,
        *,
        caches: bool = True,
    ) -> None:
        self.model = model
        self.mode = mode
        self.caches = caches

    def prefill(self, ids: Tensor) -> Any:
        """Read a prompt, and return its cache."""
        with torch.no_grad(), self.mode():
            output = self.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=self.caches, logits_to_keep=1
            )
        return output.past_key_values

    def decode(self, cache: Any, ids: Tensor, prompt_tokens: int) -> None:
        """Read the tokens behind a cached prompt one by one, and take them back."""
        with torch.no_grad(), self.mode():
            for end in range(prompt_tokens + 1, ids.shape[1] + 1):
                self.model(
                    input_ids=ids[:, end - 1 if self.caches else 0 : end],
                    attention_mask=torch.ones(1, end, dtype=torch.int64),
                    past_key_values=cache,
                    use_cache=self.caches,
                    logits_to_keep=1,
                )
        if cache is not None:
            # By a negative number: the tokens to remove.
            cache.crop(prompt_tokens - ids.shape[1])


def variants_of(setup: Setup, dtype: torch.dtype, only: list[str] | None) -> dict[str, Variant]:
    """Return every variant by name, each kind on a base of its own."""

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(setup.base, dtype=dtype).eval()

    routed = load_bundle(setup.bundle, base()).model
    found = {
        "base": Variant(base()),
        ONE_LORA: Variant(PeftModel.from_pretrained(base(), setup.adapters[0]).eval()),
        "forced": Variant(routed, lambda: force_adapter(routed, setup.adapters[0].name)),
    }
    for scope in SCOPES:
        found[scope] = Variant(routed, functools.partial(route_as, routed, scope=scope, abstain=None))
    if only is None or "segment" in only:
        found["segment"] = Variant(load_bundle(setup.segments, base()).model)
    if only is None or "Arrow (PEFT)" in only:
        found["Arrow (PEFT)"] = Variant(_arrow(setup, base()))
    if only is None or "X-LoRA (PEFT)" in only:
        found["X-LoRA (PEFT)"] = Variant(_xlora(setup, base()), caches=False)
    kept = {"base", ONE_LORA, *(found if only is None else only)}
    return {name: variant for name, variant in found.items() if name in kept}


def _arrow(setup: Setup, base: Any) -> nn.Module:
    paths = [str(folder) for folder in setup.adapters]
    model: nn.Module = create_arrow_model(
        base_model=base, task_specific_adapter_paths=paths, arrow_config=ArrowConfig(top_k=1)
    )
    return model.eval()


def _xlora(setup: Setup, base: Any) -> nn.Module:
    # PEFT names them by their place, and later looks for them by these names.
    adapters = {str(place): str(folder) for place, folder in enumerate(setup.adapters)}
    config = XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=base.config.hidden_size, xlora_depth=2, adapters=adapters
    )
    # PEFT refuses a base that keeps a cache: each token is read with all before it.
    base.config.use_cache = False
    return get_peft_model(base, config).eval()


def measure(
    setup: Setup, dtype: torch.dtype, threads: list[int], only: list[str] | None, seconds: float
) -> Iterator[Row]:
    """Yield a row for each variant, phase and number of threads."""
    variants = variants_of(setup, dtype, only)
    tokens = PROMPT_TOKENS + DECODED_TOKENS
    vocabulary = variants["base"].model.config.vocab_size
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    for count in threads:
        torch.set_num_threads(count)
        facts = {"dtype": str(dtype).removeprefix("torch.")} | description("cpu") | {"peft": peft.__version__}
        for phase, calls in {"decode": _decodes(variants, ids), "prefill": _prefills(variants, ids)}.items():
            found = interleaved(calls, device="cpu", seconds=seconds)
            one_lora, steps = found[ONE_LORA], DECODED_TOKENS if phase == "decode" else 1
            for name, quantiles in found.items():
                cost = _cost(quantiles, one_lora, steps)
                print(phase, count, dtype, name, cost["ratio"], file=sys.stderr)
                yield {"phase": phase, "variant": name} | cost | facts


def _decodes(variants: dict[str, Variant], ids: Tensor) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for name, variant in variants.items():
        cache = variant.prefill(ids[:, :PROMPT_TOKENS])
        calls[name] = functools.partial(variant.decode, cache, ids, PROMPT_TOKENS)
    return calls


def _prefills(variants: dict[str, Variant], ids: Tensor) -> dict[str, Call]:
    prompt = ids[:, :PROMPT_TOKENS]
    return {name: functools.partial(variant.prefill, prompt) for name, variant in variants.items()}


def _cost(found: Quantiles, one_lora: Quantiles, tokens: int) -> Row:
    return {
        "ms": round(found.p50 / tokens, 3),
        "ms_p20": round(found.p20 / tokens, 3),
        "ms_p80": round(found.p80 / tokens, 3),
        "ratio": round(found.p50 / one_lora.p50, 3),
        "calls": found.calls,
    }


def page_of(rows: list[Row]) -> str:
    """Return the page with its tables made from these rows."""
    return with_section(PAGE.read_text(encoding="utf-8"), START, END, tables(rows))


def tables(rows: list[Row]) -> str:
    """Return a table of ratios for each phase in markdown."""
    settings = list(dict.fromkeys((row["dtype"], row["threads"]) for row in rows))
    found = {(row["phase"], row["variant"], row["dtype"], row["threads"]): row["ratio"] for row in rows}
    lines: list[str] = []
    for phase, goals in GOALS.items():
        heads = [f"{dtype}, {threads} thread{'s' if threads > 1 else ''}" for dtype, threads in settings]
        lines += [f"| {phase} | goal | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
        for variant in dict.fromkeys(row["variant"] for row in rows if row["phase"] == phase):
            cells = [str(found.get((phase, variant, *setting), "")) for setting in settings]
            goal = goals.get(variant)
            lines.append(f"| {variant} | {'' if goal is None else f'{goal} or less'} | {' | '.join(cells)} |")
        lines.append("")
    device = rows[0]
    versions = f"torch {device['torch']}, PEFT {device['peft']}"
    return "\n".join([*lines, f"{device['device']}, {versions}."]) + "\n"
