"""A bundle that is fitted to answer in the order of a prompt's list, from the command line to its answers."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from meteora_registry.registry.cli.answer_text import explain
from meteora_registry.registry.workflows.conversation import Served
from meteora_registry.runtime import LoadedBundle, load_bundle, route_as
from meteora_registry.schemas.bundle import BundleConfig
from meteora_registry.serving.answers import Routed
from support.program import Run
from support.task_data import make_fit_workplace, write_lines

NAMES = ("rank4", "rank8")
# The letters of each member's data.
_LETTERS = {"rank4": "abcdefgh", "rank8": "stuvwxyz"}
PROMPT = "1. abcdefgh abcdefgh\n2. stuvwxyz stuvwxyz\n\n"


def character_tokenizer() -> PreTrainedTokenizerFast:
    characters = ["<unk>", "<s>", *"\n .:)-", *string.digits, *string.ascii_lowercase]
    vocabulary = {character: place for place, character in enumerate(characters)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<s>")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_fit_workplace(tmp_path_factory.mktemp("ordered"), NAMES)
    character_tokenizer().save_pretrained(folder / "base")
    for name, letters in _LETTERS.items():
        words = [letters[place:] + letters[:place] for place in range(len(letters))] * 2
        lines = [{"prompt": f"{word} {word}", "response": f" {word}"} for word in words]
        write_lines(folder / "data" / f"{name}.jsonl", lines)
    return folder


@pytest.fixture
def ordered(run: Run, workplace: Path) -> Path:
    """The bundle; made once, read only."""
    folder = workplace / "fitted"
    if not folder.exists():
        assert run("add", *(f"adapters/{name}" for name in NAMES)).returncode == 0
        assert run("fuse", *NAMES, "--out", "bundle").returncode == 0
        fit = ("gate", "fit", "bundle", "--base", "./base", "--data", "./data", "--out", "fitted")
        result = run(*fit, "--scope", "segment", "--answers", "in-order")
        assert result.returncode == 0, result.stderr
    return folder


def write(loaded: LoadedBundle, prompt: str, answer: str) -> list[tuple[int | None, tuple[str, ...]]]:
    """Let the model write an answer, and return the item and members of each of the answer's decisions."""
    batch = loaded.encode([prompt])
    start, wanted = batch["input_ids"].shape[1], loaded.tokenizer(answer)["input_ids"]

    def allowed(row: int, ids: Tensor) -> list[int]:
        return wanted[len(ids) - start :][:1] or [0]

    with loaded.routing() as record, torch.no_grad():
        loaded.model.generate(**batch, max_new_tokens=len(wanted), prefix_allowed_tokens_fn=allowed)
    return [(each.item, each.members) for each in record.decisions if each.end > start]


def test_fit_keeps_what_the_tokens_mean_for_lines(ordered: Path) -> None:
    config = BundleConfig.read((ordered / "adapter_config.json").read_bytes())
    assert "gate-answers" in config.required_features
    assert config.gate.answers is not None
    ids = character_tokenizer()
    expected = {"\n": (1, *ids("\n")["input_ids"]), "-": tuple(ids("-")["input_ids"])}
    found = config.gate.answers.tokens
    assert {text: found[text] for text in expected} == expected
    assert "served in the order of that list" in (ordered / "README.md").read_text()


def test_lines_of_an_answer_are_served_in_the_order_of_the_prompts_list(
    ordered: Path, workplace: Path
) -> None:
    loaded = load_bundle(ordered, workplace / "base")
    assert write(loaded, PROMPT, "1. no\n2. no\n")[1:] == [(1, ("rank4",)), (2, ("rank8",))]
    assert write(loaded, PROMPT + "1.", " 7\n2. 8\n") == [(1, ("rank4",)), (2, ("rank8",))]
    with route_as(loaded.model, answers="by-text"):
        assert {item for item, _ in write(loaded, PROMPT, "1. no\n2. no\n")} == {None}
    # A call's own choice, and the decisions of an answer that the model chooses.
    answer = loaded.answer(PROMPT + "2.", max_new_tokens=4)
    assert answer.decisions[-1].item == 2
    answer = loaded.answer(PROMPT + "2.", max_new_tokens=4, answers="by-text")
    assert {each.item for each in answer.decisions} == {None}


def test_explanation_names_the_item(ordered: Path, workplace: Path) -> None:
    loaded = load_bundle(ordered, workplace / "base")
    with loaded.stream(PROMPT + "2.", max_new_tokens=3) as pieces:
        list(pieces)
    served = Served.of(pieces, "segment", forced=False)
    end = pieces.prompt_tokens + pieces.answer_tokens - 2
    wanted = f"item 2 of the prompt's list, which tokens {pieces.prompt_tokens - 2} to {end} answer:"
    assert f"how likely each member is by {wanted}" in [*explain(served, loaded)]
    routed = Routed.by_decisions(served.decisions, "segment")
    assert (routed.member, routed.decisions[-1]["item"]) == ("rank8", 2)


def test_generate_prints_whose_item_answered(run: Run, ordered: Path) -> None:
    asked = ("generate", "./fitted", PROMPT + "1.", "--base", "./base", "--no-template")
    result = run(*asked, "--max-tokens", "3", "--format", "json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["decisions"][-1]["item"] == 1
