"""Answers as each request asks for them: drawn or not, up to a stop text, and with who gave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meteora_registry.runtime import LoadedBundle, generate, route_as
from meteora_registry.serving.limits import Limits
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT
from support.patience import wait_until
from support.scopes import SCOPES
from support.serving import (
    MEMBERS,
    NAME,
    Serving,
    asking,
    held,
    load_served,
    metric,
    post,
    running,
    serving_bundle,
)

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
DRAWN = {"temperature": 1.5, "seed": 7, "max_tokens": 12}


def text_of(served: Serving, **body: Any) -> str:
    """Return the text of the only choice."""
    text: str = post(served, **body).json()["choices"][0]["text"]
    return text


def test_drawn_answer_depends_on_its_seed_alone(loaded: LoadedBundle) -> None:
    with serving_bundle(loaded, Limits(batches=1)) as served, asking() as ask:
        alone = text_of(served, **DRAWN)
        assert text_of(served, **DRAWN) == alone
        assert text_of(served, **DRAWN | {"seed": 8}) != alone
        greedy = text_of(served, prompt="w5 w6 w7", max_tokens=12)
        with held(loaded) as passes:
            first = ask(served, max_tokens=1)
            passes.wait_for_a_pass()
            bodies = [DRAWN, {"prompt": "w5 w6 w7", "max_tokens": 12}, DRAWN | {"seed": 9}]
            batch = [ask(served, **body) for body in bodies]
            wait_until(lambda: running(served)["waiting"] == 3)
            passes.allow(1 + 12)
            found = [each.result().json()["choices"][0]["text"] for each in batch]
        assert first.result().status_code == 200
    assert found[:2] == [alone, greedy]
    assert found[2] not in (alone, greedy)


def test_answer_is_drawn_unless_the_request_asks_for_the_likeliest(served: Serving) -> None:
    unstated = {"temperature": None, "max_tokens": 30}
    assert text_of(served, **unstated) != text_of(served, **unstated)


@pytest.fixture(scope="module")
def likeliest(served: Serving) -> str:
    """The greedy answer of twelve tokens."""
    return text_of(served, max_tokens=12)


@pytest.mark.parametrize(
    "narrow",
    [{"top_p": 1e-6}, {"top_p": 1e-300}, *({"temperature": each} for each in (1e-4, 1e-5, 1e-40, 1e-320))],
    ids=str,
)
def test_narrowest_draw_is_the_likeliest_token(
    served: Serving, likeliest: str, narrow: dict[str, float]
) -> None:
    assert text_of(served, **DRAWN | narrow) == likeliest


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
def test_answer_ends_before_its_stop_text(served: Serving, likeliest: str, is_stream: bool) -> None:
    words = likeliest.split()
    stop = f"{words[3]} {words[4]}"
    whole = " ".join(words).partition(stop)[0]
    answer = post(served, max_tokens=12, stop=["nothing", stop], stream=is_stream)
    choices = [choice for chunk in chunks_of(answer.text, is_stream) for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole
    assert choices[-1]["finish_reason"] == "stop"


def chunks_of(text: str, is_stream: bool) -> list[dict[str, Any]]:
    """Return the objects of an answer."""
    if not is_stream:
        return [json.loads(text)]
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def test_answer_ends_with_the_bases_own_end(loaded: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_bundle(loaded) as served:
        ids = loaded.tokenizer(text_of(served, max_tokens=12))["input_ids"]
        end = ids.index(ids[3])
        monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [ids[3], 0])
        found = post(served, prompt=["w1 w2", "w5 w6 w7"], max_tokens=12).json()
        assert found["choices"][0]["finish_reason"] == "stop"
        assert [each["text"] for each in found["choices"]] == loaded.generate(
            ["w1 w2", "w5 w6 w7"], max_new_tokens=12
        )
        alone = post(served, max_tokens=12).json()
        assert alone["usage"] == {"prompt_tokens": 2, "completion_tokens": end + 1, "total_tokens": end + 3}


@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_answers_and_states_who_did(tmp_path_factory: pytest.TempPathFactory, scope: str) -> None:
    loaded = load_served(tmp_path_factory.mktemp(scope), scope=scope)
    prompts = ["w1 w2 w3 w4 w5", "w7", "w9 w11 w13"]
    answers = loaded.answer(prompts, max_new_tokens=6)
    with serving_bundle(loaded) as served:
        found = post(served, prompt=prompts, max_tokens=6).json()
    assert [choice["text"] for choice in found["choices"]] == [answer.text for answer in answers]
    for stated, answer, prompt in zip(found["meteora"], answers, prompts, strict=True):
        assert (stated["scope"], stated["forced"]) == (scope, False)
        if scope in ("token", "layer"):
            assert stated["shares"] == pytest.approx(shares_alone(loaded, prompt), abs=1e-5)
            assert stated["member"] == max(stated["shares"], key=stated["shares"].get)
            assert stated["confidence"] is None
        else:
            members = [list(decision.members) for decision in answer.decisions]
            assert [each["members"] for each in stated["decisions"]] == members
            assert stated["member"] in {member for each in members for member in each}


def shares_alone(loaded: LoadedBundle, prompt: str) -> dict[str, float]:
    """Return the share of the tokens of a prompt and its answer that each member took, all by itself."""
    with loaded.routing() as record:
        generate(loaded, prompt, max_new_tokens=6)
    shares = dict.fromkeys((*record.members, "base"), 0.0)
    tables = record.modules.values()
    for routing in tables:
        for member, name in enumerate(record.members):
            share = (routing.weights * (routing.selection == member)).sum() / routing.selection[
                ..., 0
            ].numel()
            shares[name] += share.item() / len(tables)
    return shares


def test_segments_are_stated_by_the_tokens_of_their_own_prompt(tmp_path: Path) -> None:
    loaded = load_served(tmp_path, scope="segment")
    with serving_bundle(loaded) as served:
        found = post(served, prompt=["w1 w2 w3 w4 w5", "w7"], max_tokens=6).json()["meteora"]
    for stated, tokens in zip(found, (5, 1), strict=True):
        assert stated["decisions"][0]["start"] == 0
        assert stated["decisions"][-1]["end"] == tokens + 5, "the last token was written and never read"


def test_prompt_that_no_member_is_sure_of_is_left_to_the_base(loaded: LoadedBundle, served: Serving) -> None:
    before = metric(served, "meteora_abstentions_total")
    with route_as(loaded.model, abstain=1.0):
        answer = post(served)
    assert answer.json()["choices"][0]["text"] == loaded.generate("w1 w2", max_new_tokens=4, member=None)
    stated = answer.json()["meteora"]
    assert (stated["member"], stated["forced"]) == (None, False)
    assert 0 < stated["confidence"] < 1
    assert answer.headers["x-meteora-member"] == "base"
    assert metric(served, "meteora_abstentions_total") == before + 1


def test_metrics_count_requests_tokens_and_decisions(loaded: LoadedBundle) -> None:
    with serving_bundle(loaded) as served:
        for model in (NAME, f"{NAME}/rank8", f"{NAME}/base", "other"):
            post(served, model=model)
        post(served, prompt=["w1", "w2 w3"], stream=True)
        member = loaded.answer("w1 w2", max_new_tokens=1).decisions[0].members[0]
        route = {"route": "/v1/completions"}
        assert metric(served, "meteora_requests_total", **route, status="200") == 4
        assert metric(served, "meteora_requests_total", **route, status="404") == 1
        assert metric(served, "meteora_prompt_tokens_total") == 3 * 2 + 3
        assert metric(served, "meteora_answer_tokens_total") == 5 * 4
        decided = [metric(served, "meteora_decisions_total", member=name, forced="false") for name in MEMBERS]
        assert sum(decided) == 3
        assert metric(served, "meteora_decisions_total", member=member, forced="false") >= 1
        assert metric(served, "meteora_decisions_total", member="rank8", forced="true") == 1
        assert metric(served, "meteora_decisions_total", member="base", forced="true") == 1
        assert metric(served, "meteora_first_token_seconds_count") == 5
        assert metric(served, "meteora_answer_seconds_count") == 4
        assert metric(served, "meteora_waiting") == metric(served, "meteora_running") == 0
