"""Names of base models: which of them are one base, and which are paths."""

from __future__ import annotations

import pytest

from meteora_registry.schemas.base_name import (
    CachedRepository,
    common_hub_name,
    group_by_base,
    is_local_path,
    is_quantised_copy,
    is_same_base,
    names_of,
    parse_cache_path,
    present_name,
)

COMMIT = "3f1c9ab0" * 5
CACHE = "/root/.cache/huggingface/hub/"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("org/Model-7B", "ORG/model-7b"),
        ("THUDM/glm-4-9b", "zai-org/glm-4-9b"),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("org/model", f"{CACHE}models--org--model/snapshots/{COMMIT}"),
        ("org/model", f"D:\\hub\\models--org--model\\snapshots\\{COMMIT}\\"),
        ("openai-community/gpt2", f"{CACHE}models--gpt2/snapshots/{COMMIT}"),
        ("org/model", "https://huggingface.co/org/model/tree/main"),
        ("gpt2", "https://huggingface.co/openai-community/gpt2"),
        ("org/model", "hf://org/model@v1"),
        ("org/model", " org/model\n"),
    ],
    ids=[
        "before organisations",
        "case",
        "organisation",
        "family",
        "cache",
        "windows",
        "old in cache",
        "address",
        "old address",
        "hf",
        "space",
    ],
)
def test_spellings_of_one_base_are_the_same(one: str, other: str) -> None:
    assert is_same_base(one, other)
    assert not is_local_path(one)
    assert not is_local_path(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("org/model", "org/model-bnb-4bit"),
        ("org/model", "other/model"),
        ("org/model", "org/model-instruct"),
        ("gpt2", "gpt2-medium"),
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Llama-3-8B"),
        ("org/model", f"{CACHE}models--org--model/snapshots/{COMMIT}/unet"),
        ("org/model", "/models/org/model"),
    ],
    ids=["quantised", "organisation", "variant", "size", "not renamed", "folder in a snapshot", "path"],
)
def test_other_bases_are_not_the_same(one: str, other: str) -> None:
    assert not is_same_base(one, other)


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "OpenAI-Community/GPT2"])
def test_base_goes_by_its_old_name_too(name: str) -> None:
    assert {"gpt2", present_name(name)} == set(names_of(name))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("models--org--name", CachedRepository("org/name", None)),
        (f"x/models--gpt2/snapshots/{COMMIT}", CachedRepository("gpt2", COMMIT)),
        (f"/x/models--org--name/snapshots/{COMMIT}/", CachedRepository("org/name", COMMIT)),
        ("/x/models--org--name/snapshots/main", None),
        ("/x/models--a--b--c", None),
        ("/x/datasets--org--name", None),
        ("org/name", None),
    ],
    ids=["folder", "one part", "snapshot", "no commit", "three parts", "data set", "name"],
)
def test_cache_path_names_its_repository(path: str, expected: CachedRepository | None) -> None:
    assert parse_cache_path(path) == expected


@pytest.mark.parametrize("path", ["./base", "/x/base", "~/base", "D:\\base", "a/b/c", "org/base/", "../x"])
def test_path_is_a_local_path_and_keeps_its_text(path: str) -> None:
    assert is_local_path(path)
    assert present_name(path) == path


def test_quantised_copy_is_recognised_but_not_in_a_path() -> None:
    assert is_quantised_copy("unsloth/Model-bnb-4bit")
    assert not is_quantised_copy("org/model")
    assert not is_quantised_copy("/x/y/model-bnb-4bit")


def test_adapters_are_grouped_by_base() -> None:
    named = [("a", "gpt2"), ("b", None), ("c", "openai-community/GPT2"), ("d", "org/other")]
    assert group_by_base(named) == {"openai-community/gpt2": ["a", "c"], "org/other": ["d"]}


def test_common_name_disregards_paths_and_refuses_two() -> None:
    assert common_hub_name(["./x", None, "org/model", "ORG/model"]) == "ORG/model"
    assert common_hub_name(["org/model", "org/other"]) is None
    assert common_hub_name(["./x", None]) is None
