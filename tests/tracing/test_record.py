"""Traces recorded from a real model, held against its own record of the same run."""

from __future__ import annotations

import pytest
import torch

from meteora_registry.runtime import LoadedBundle, force_adapter, generate, load_bundle, route_as, routing
from meteora_registry.runtime.tracing import trace
from meteora_registry.runtime.tracing.display import leading_members, token_shares
from meteora_registry.schemas.errors import UsageError
from support.answering import MEMBERS, make_workplace
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
PROMPT = "w1 w2 w3 w4"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    workplace = make_workplace(tmp_path_factory.mktemp("tracing"))
    return load_bundle(workplace.bundle, workplace.base)


def test_trace_tells_what_the_model_routed(loaded: LoadedBundle) -> None:
    found = trace(loaded, PROMPT, max_new_tokens=5, bundle="tiny")
    with routing(loaded.model) as record:
        answer = generate(loaded, [PROMPT], max_new_tokens=5)[0]
    assert "".join(token.text for token in found.tokens) == f"{PROMPT} {answer}"
    assert [token.generated for token in found.tokens] == [False] * 4 + [True] * 5
    assert {module.path for module in found.modules} == set(loaded.config.target_modules)
    for module in found.modules:
        table, routed = found.routings[module.routing], record.modules[module.path]
        assert torch.equal(torch.tensor(table.selection[:-1]), routed.selection[0])
        torch.testing.assert_close(torch.tensor(table.weights[:-1]), routed.weights[0], atol=1e-4, rtol=0)


def test_token_that_was_written_and_never_read_has_no_member(loaded: LoadedBundle) -> None:
    found = trace(loaded, PROMPT, max_new_tokens=3, bundle="tiny")
    leading = leading_members(token_shares(found))
    assert leading[-1] == -1
    assert -1 not in leading[:-1]


def test_prompt_alone_is_read_to_its_end(loaded: LoadedBundle) -> None:
    found = trace(loaded, PROMPT, max_new_tokens=0, bundle="tiny")
    assert found.prompt_length == len(found.tokens) == 4
    assert -1 not in leading_members(token_shares(found))


def test_one_decision_for_all_modules_is_kept_once(loaded: LoadedBundle) -> None:
    with route_as(loaded.model, scope="prompt", top_k=1):
        found = trace(loaded, PROMPT, max_new_tokens=3, bundle="tiny")
    assert (found.scope, found.top_k, len(found.routings)) == ("prompt", 1, 1)
    assert len(found.modules) == len(loaded.config.target_modules)
    assert len(set(leading_members(token_shares(found))[:-1])) == 1


def test_forced_member_takes_every_token(loaded: LoadedBundle) -> None:
    with force_adapter(loaded.model, "two"):
        found = trace(loaded, PROMPT, max_new_tokens=2, bundle="tiny")
    assert leading_members(token_shares(found)) == [MEMBERS.index("two")] * 5 + [-1]


def test_trace_says_whether_the_gate_is_fitted(loaded: LoadedBundle) -> None:
    assert not trace(loaded, PROMPT, max_new_tokens=0, bundle="tiny").gate_fitted


def test_prompt_without_tokens_is_refused(loaded: LoadedBundle) -> None:
    with pytest.raises(UsageError) as caught:
        trace(loaded, "", max_new_tokens=2, bundle="tiny")
    assert str(caught.value) == "the prompt has no tokens, expected some text"


def test_more_tokens_than_the_base_takes_are_refused(loaded: LoadedBundle) -> None:
    with pytest.raises(UsageError) as caught:
        trace(loaded, PROMPT, max_new_tokens=61, bundle="tiny")
    assert str(caught.value) == (
        "the prompt has 4 tokens and the answer up to 61, the base takes 64 together"
    )
