"""Answers in order on a whole model: cached, generated, in batches and beams, and with guessed tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime import Decision, route_as, routing
from support.bundles import write_bundle
from support.lines import ANSWERS, encode
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, logits_of, make_llama_adapters, tiny_llama
from support.routed_reference import PlainBundle, base_evidence, routed
from support.scopes import MAX_ERROR, loaded, padded

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

MODULE = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ordered")
    return write_bundle(
        folder / "bundle", make_llama_adapters(folder), top_k=1, scope="segment", answers=ANSWERS
    )


@dataclass(frozen=True)
class Composite:
    """A prompt with a list of two items, their members, and an answer whose lines come in the other order."""

    prompt: str
    members: tuple[int, int]
    answer: str = "2. z\nz\n1. z\n2.5"

    @property
    def tokens(self) -> list[int]:
        return encode(self.prompt + self.answer)

    @property
    def items(self) -> list[int | None]:
        """Which item serves each token of the answer."""
        # Two of the mark "2." are read before the digit behind it shows that it is none.
        return [None] + [2] * 7 + [1] * 5 + [2] + [1]


@pytest.fixture(scope="module")
def composite(bundle: Path) -> Composite:
    plain, base = PlainBundle(bundle), tiny_llama()
    for first in "abcdefgh":
        for second in "ijklmnop":
            prompt = f"1. {first * 8}\n2. {second * 8}\n\n"
            evidence = base_evidence(base, plain, encode(prompt))
            means = [evidence[2:12].mean(dim=0), evidence[14:25].mean(dim=0)]
            one, two = (int(mean.argmax()) for mean in means)
            if one != two and min(float(mean.topk(2).values.diff().abs()) for mean in means) > 0.1:
                return Composite(prompt, (one, two))
    pytest.fail("no two items call for different members, so nothing can be shown")


def read_in_pieces(model: PeftModel, composite: Composite, sizes: list[int]) -> tuple[Tensor, list[Decision]]:
    """Return the logits of a text that a cache is filled with piece by piece, and the decisions."""
    found, start = [], 0
    cache = None
    with routing(model) as record, torch.no_grad():
        for size in sizes:
            tokens = torch.tensor([composite.tokens[start : start + size]])
            output = model(tokens, past_key_values=cache, use_cache=True)
            # A copy of a cache has what was decided.
            cache = copy.deepcopy(output.past_key_values)
            found.append(output.logits)
            start += size
    return torch.cat(found, dim=1), list(record.decisions)


def test_model_computes_what_the_items_call_for(bundle: Path, composite: Composite) -> None:
    model, plain = loaded(bundle), PlainBundle(bundle)
    prompt, answer = len(composite.prompt), len(composite.answer)
    logits, decisions = read_in_pieces(model, composite, [prompt] + [1] * answer)
    items: list[int | None] = [None] * (prompt + answer)
    served = torch.zeros(prompt + answer, len(plain.members))
    for each in decisions:
        items[each.start : each.end] = [each.item] * (each.end - each.start)
        served[each.start : each.end, plain.members.index(each.members[0])] = 1
    assert items == [None] * prompt + composite.items
    members = served[prompt:].argmax(dim=-1).tolist()
    assert [member for member, item in zip(members, composite.items, strict=True) if item] == [
        composite.members[item - 1] for item in composite.items if item
    ]
    base = tiny_llama()
    with routed(base, (plain, lambda path, x: served.expand(1, -1, -1))):
        expected = logits_of(base, torch.tensor([composite.tokens]))
    assert relative_error(logits, expected) <= MAX_ERROR
    with route_as(model, answers="by-text"):
        other, _ = read_in_pieces(model, composite, [prompt] + [1] * answer)
    assert relative_error(other[:, prompt:], expected[:, prompt:]) > 1e-3


def test_answer_is_the_same_however_it_comes(bundle: Path, composite: Composite) -> None:
    model, prompt = loaded(bundle), len(composite.prompt)
    expected, _ = read_in_pieces(model, composite, [prompt] + [1] * len(composite.answer))
    found, _ = read_in_pieces(model, composite, [prompt, 2, 7, len(composite.answer) - 9])
    assert relative_error(found, expected) <= MAX_ERROR
    tokens = torch.tensor([composite.tokens])
    labels = tokens.clone()
    labels[:, :prompt] = -100
    assert relative_error(logits_of(model, tokens, labels=labels), expected) <= MAX_ERROR


def generated(model: PeftModel, prompts: list[str], answer: str, **options: object) -> list[list[int]]:
    """Return the members of the answers' tokens, for an answer that ``generate`` is made to write."""
    batch, wanted = padded([encode(prompt) for prompt in prompts]), encode(answer)
    width = batch["input_ids"].shape[1]

    def allowed(row: int, ids: Tensor) -> list[int]:
        return wanted[len(ids) - width :][:1] or [0]

    with routing(model) as record:
        model.generate(
            **batch,
            max_new_tokens=len(wanted),
            do_sample=False,
            pad_token_id=0,
            prefix_allowed_tokens_fn=allowed,
            **options,
        )
    found: list[list[int]] = record.modules[MODULE].selection[:, width:, 0].tolist()
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 3}, {"use_cache": False}, {"prefill_chunk_size": 5}],
    ids=["cache", "beams", "guessed", "no-cache", "pieces"],
)
def test_generate_serves_in_order(bundle: Path, composite: Composite, options: dict[str, object]) -> None:
    model = loaded(bundle)
    found = generated(model, [composite.prompt], composite.answer, **options)[0]
    # The last token is written and never read.
    items = composite.items[: len(composite.answer) - 1]
    assert [found[place] for place, item in enumerate(items) if item] == [
        composite.members[item - 1] for item in items if item
    ]


def test_rows_of_a_batch_are_served_as_alone(bundle: Path, composite: Composite) -> None:
    model = loaded(bundle)
    prompts = [composite.prompt, "ab", composite.prompt[3:]]
    alone = [generated(model, [prompt], composite.answer)[0] for prompt in prompts]
    assert generated(model, prompts, composite.answer) == alone
    # Only the first has a list.
    assert alone[0] != alone[2]
