"""Text in, text out: a bundle loaded with its base and tokenizer, and the example that shows it."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from meteora_registry.runtime import force_adapter, generate, load_bundle
from meteora_registry.runtime.loaded_bundle import CallChoice
from meteora_registry.schemas.errors import BundleRefused, SourceUnreadable, UsageError
from meteora_registry.schemas.gate_choices import Scope
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_llama_adapters, tiny_llama
from support.task_data import save_text_base

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

PROMPTS = ["w1 w2 w3 w4 w5", "w7", "w9 w11 w13"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "route.py"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    members = dict(list(make_llama_adapters(folder / "adapters").items())[:3])
    return write_bundle(folder / "bundle", members, top_k=1, scope="prompt")


def test_batch_of_prompts_is_answered_as_each_alone(bundle: Path, base: Path) -> None:
    loaded = load_bundle(bundle, base)
    together = generate(loaded, PROMPTS, max_new_tokens=6)
    assert together == [generate(loaded, [prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    assert all(
        answer and not answer.startswith(prompt) for answer, prompt in zip(together, PROMPTS, strict=True)
    )
    with force_adapter(loaded.model, "rank4"):
        assert generate(loaded, PROMPTS, max_new_tokens=6) != together


def test_a_text_is_one_prompt_and_gives_one_text(bundle: Path, base: Path) -> None:
    loaded = load_bundle(str(bundle), str(base))
    answer = generate(loaded, PROMPTS[0], max_new_tokens=6)
    assert [answer] == generate(loaded, PROMPTS[:1], max_new_tokens=6)
    assert loaded.generate(PROMPTS[0], max_new_tokens=6) == answer
    assert loaded.generate(tuple(PROMPTS[:1]), max_new_tokens=6) == [answer]


def test_a_loaded_bundle_forces_and_records_by_itself(bundle: Path, base: Path) -> None:
    loaded = load_bundle(bundle, base)
    with loaded.force("rank8"), loaded.routing() as record:
        forced = loaded.generate(PROMPTS[0], max_new_tokens=6)
    selections = [routing.selection for routing in record.modules.values()]
    assert selections and all((selection == 1).all() for selection in selections)
    with force_adapter(loaded.model, "rank8"):
        assert generate(loaded, PROMPTS[0], max_new_tokens=6) == forced
    with pytest.raises(UsageError, match="has no member `other`"), loaded.force("other"):
        pass


def test_base_in_memory_is_used_as_it_is(bundle: Path, base: Path) -> None:
    model = type(tiny_llama()).from_pretrained(base)
    loaded = load_bundle(bundle, model)
    assert loaded.model.base_model.model is model
    assert loaded.config.names == ("rank4", "rank8", "rslora16")
    assert generate(loaded, PROMPTS, max_new_tokens=4) == generate(
        load_bundle(bundle, base), PROMPTS, max_new_tokens=4
    )
    with pytest.raises(UsageError) as caught:
        load_bundle(bundle, tiny_llama(), dtype=torch.bfloat16)
    assert str(caught.value) == "the base is loaded in `torch.float32`, found also `dtype=torch.bfloat16`"


def test_base_is_loaded_in_the_dtype_asked_for(bundle: Path, base: Path) -> None:
    assert load_bundle(bundle, str(base), dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_what_cannot_be_loaded_is_refused(bundle: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="is not a base model"):
        load_bundle(bundle, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(BundleRefused, match="is not a MeteoRA bundle"):
        load_bundle(tmp_path, base)
    with pytest.raises(UsageError) as caught:
        generate(load_bundle(bundle, base), [])
    assert str(caught.value) == "there are no prompts to answer"


def test_example_shows_every_way_of_routing(
    bundle: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("route", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(bundle, str(base), PROMPTS[:2])
    printed = capsys.readouterr().out
    assert "3 members, scope `prompt`" in printed
    for title in ("as the bundle routes", "token by token", "`rslora16` alone", "the base alone"):
        assert title in printed
    # One decision of scope `prompt` for each request, padding included.
    assert printed.count("\n    tokens 0 to 36: ") == 2
    assert "request 1: " in printed
    answers = generate(load_bundle(bundle, base), PROMPTS[:2], max_new_tokens=example.MAX_NEW_TOKENS)
    assert all(f"-> {answer!r}" in printed for answer in answers)


@pytest.mark.parametrize("scope", ["prompt", "segment"])
def test_answers_come_with_who_gave_them_and_how_sure(bundle: Path, base: Path, scope: Scope) -> None:
    loaded = load_bundle(bundle, base)
    answers = loaded.answer(PROMPTS, max_new_tokens=6, scope=scope)
    assert [answer.text for answer in answers] == loaded.generate(PROMPTS, max_new_tokens=6, scope=scope)
    for row, answer in enumerate(answers):
        assert answer.decisions
        assert all(decision.sequence == row for decision in answer.decisions)
        assert all(decision.members[0] in loaded.config.names for decision in answer.decisions)
        assert all(0 < decision.confidence <= 1 for decision in answer.decisions)
    alone = loaded.answer(PROMPTS[0], max_new_tokens=6, scope=scope)
    assert alone.decisions[0].members == answers[0].decisions[0].members
    assert alone.decisions[0].confidence == pytest.approx(answers[0].decisions[0].confidence, rel=1e-5)


def test_answer_below_the_threshold_is_the_bases_and_says_so(bundle: Path, base: Path) -> None:
    loaded = load_bundle(bundle, base)
    answer = loaded.answer(PROMPTS[0], max_new_tokens=6, abstain=1.0)
    assert [decision.members for decision in answer.decisions] == [()]
    with loaded.model.disable_adapter():
        assert loaded.generate(PROMPTS[0], max_new_tokens=6) == answer.text


def test_call_for_no_member_is_answered_by_the_base_alone(bundle: Path, base: Path) -> None:
    loaded = load_bundle(bundle, base)
    with loaded.model.disable_adapter():
        expected = loaded.generate(PROMPTS, max_new_tokens=6)
    assert expected != loaded.generate(PROMPTS, max_new_tokens=6)
    assert loaded.generate(PROMPTS, max_new_tokens=6, member=None) == expected
    # The call's own choice comes before that of a block.
    with loaded.force("rank8"):
        assert loaded.generate(PROMPTS, max_new_tokens=6, member=None) == expected


@pytest.mark.parametrize(
    "choice",
    [{"scope": "token"}, {"member": "rank8"}, {"member": None}],
    ids=["token", "forced", "base"],
)
def test_answer_without_a_decision_has_none(bundle: Path, base: Path, choice: CallChoice) -> None:
    loaded = load_bundle(bundle, base)
    answer = loaded.answer(PROMPTS[0], max_new_tokens=6, **choice)
    assert (answer.text, answer.decisions) == (loaded.generate(PROMPTS[0], max_new_tokens=6, **choice), ())


def test_answers_in_threads_keep_their_own_decisions(bundle: Path, base: Path) -> None:
    loaded = load_bundle(bundle, base)
    expected = [loaded.answer(prompt, max_new_tokens=4) for prompt in PROMPTS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda prompt: loaded.answer(prompt, max_new_tokens=4), PROMPTS * 4))
    assert found == expected * 4
