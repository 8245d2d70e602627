"""The resolver in a real engine: requests name adapters of the catalog."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from meteora_registry.registry.face import Registry
from meteora_registry.schemas.names import parse_catalog_source
from support.models import LOADS_WITH_PEFT, make_adapter
from support.vllm_engine import Answer
from support.vllm_matrix import LLAMA, alike, prompts, scores_of_peft

from .conftest import BASE_NAME, Served

pytestmark = LOADS_WITH_PEFT


@pytest.fixture
def registry(llama: Served) -> Iterator[Registry]:
    """The catalog that the engine's resolver looks into."""
    with Registry(llama.home) as opened:
        yield opened


def add(
    registry: Registry, folder: Path, name: str, *, seed: int = 0, base: str = BASE_NAME, **options: object
) -> Path:
    chosen: dict[str, object] = {"r": 4, "target_modules": ["q_proj", "v_proj"]} | options
    make_adapter(LLAMA.model, folder, seed=seed, base=base, **chosen)
    registry.add(folder, name=name)
    return folder


def point(registry: Registry, version: str, label: str) -> None:
    registry.catalog.set_alias(parse_catalog_source(version), label)


def is_answered_by(llama: Served, model: str, adapter: Path) -> bool:
    expected = scores_of_peft(LLAMA, adapter)
    assert expected is not None
    return alike(llama.engine.next_tokens(model, prompts()), expected)


def model_of(answer: Answer) -> str:
    assert answer.status == 200, answer.message
    return str(answer.document["model"])


def test_request_names_an_adapter_of_the_catalog(llama: Served, registry: Registry, tmp_path: Path) -> None:
    adapter = add(registry, tmp_path / "one", "named")
    assert is_answered_by(llama, "named", adapter)
    assert model_of(llama.engine.complete("named", "w1 w2")) == "named=1"


def test_versions_answer_side_by_side_and_each_by_its_own_weights(
    llama: Served, registry: Registry, tmp_path: Path
) -> None:
    adapters = [add(registry, tmp_path / str(seed), "versions", seed=seed) for seed in (1, 2)]
    point(registry, "versions@1", "champion")
    asked = {"versions@1": 0, "versions@2": 1, "versions": 1, "versions@champion": 0}
    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(lambda each: is_answered_by(llama, each[0], adapters[each[1]]), asked.items()))
    assert found == [True] * len(asked)


def test_label_that_moves_is_followed_once_the_engine_forgets_it(
    llama: Served, registry: Registry, tmp_path: Path
) -> None:
    before, after = (add(registry, tmp_path / str(seed), "moving", seed=seed) for seed in (3, 4))
    point(registry, "moving@1", "champion")
    assert is_answered_by(llama, "moving@champion", before)
    point(registry, "moving@2", "champion")
    # vLLM asks a resolver for each name once.
    assert model_of(llama.engine.complete("moving@champion", "w1")) == "moving@champion=1"
    assert llama.engine.unload("moving@champion").status == 200
    assert is_answered_by(llama, "moving@champion", after)
    assert model_of(llama.engine.complete("moving@champion", "w1")) == "moving@champion=2"


@pytest.mark.parametrize(
    "name", ["absent", "named@9", "/etc/passwd", "../home", "org/model", "https://example.org/x", "a" * 5000]
)
def test_unknown_name_is_not_found_and_makes_nothing(name: str, llama: Served) -> None:
    before = sorted(llama.home.rglob("*"))
    answer = llama.engine.complete(name, "w1")
    assert (answer.status, answer.document["error"]["type"]) == (404, "NotFoundError")
    assert sorted(llama.home.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "org/other"}, "is of the base `org/other`, and the engine serves `org/base`"),
        ({"use_dora": True}, "is not served by vLLM: the adapter uses an option"),
    ],
    ids=["another base", "DoRA"],
)
def test_adapter_that_is_not_for_the_engine_is_refused_with_the_reason(
    options: dict[str, object], message: str, llama: Served, registry: Registry, tmp_path: Path
) -> None:
    add(registry, tmp_path / "adapter", f"refused-{len(options)}-{'base' in options}".lower(), **options)
    answer = llama.engine.complete(f"refused-{len(options)}-{'base' in options}".lower(), "w1")
    assert answer.status == 400
    assert message in answer.message


def test_rank_above_the_engine_is_refused_by_it(llama: Served, registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path / "adapter", "wide", r=65)
    answer = llama.engine.complete("wide", "w1")
    assert answer.status == 400
    assert "`wide`" in answer.message.replace("'", "`")


def test_damaged_bytes_are_never_loaded_and_mending_is_enough(
    llama: Served, registry: Registry, tmp_path: Path
) -> None:
    adapter = add(registry, tmp_path / "adapter", "damaged", seed=7)
    file = registry.catalog.find(parse_catalog_source("damaged")).file("adapter_model.safetensors")
    blob = registry.store.path_of(file.sha256)
    whole = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(whole[:-1] + b"\1")
    answer = llama.engine.complete("damaged", "w1")
    assert answer.status == 500
    assert "its log has the reason" in answer.message
    assert str(file.sha256)[2:] in llama.engine.log.read_text()
    blob.write_bytes(whole)
    assert is_answered_by(llama, "damaged", adapter)
    assert llama.engine.complete(str(llama.base), "w1").status == 200
