from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meteora_registry.schemas.errors import InvalidDocument, UsageError
from meteora_registry.schemas.names import (
    CatalogSource,
    FolderSource,
    HubSource,
    below,
    check_alias,
    check_entry,
    check_file_name,
    check_folder_path,
    check_name,
    folder_of_adapter,
    member_entry,
    name_of_folder,
    parse_source,
    suggest_name,
)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("legal", CatalogSource("legal")),
        ("legal@3", CatalogSource("legal", version=3)),
        ("legal@champion", CatalogSource("legal", alias="champion")),
        ("team:legal", CatalogSource("team:legal")),
        ("team:legal@3", CatalogSource("team:legal", version=3)),
        ("hf:legal", CatalogSource("hf:legal")),
        ("./legal", FolderSource(Path("./legal"))),
        ("/data/legal", FolderSource(Path("/data/legal"))),
        ("org/legal", HubSource("org/legal")),
        ("org/legal@main", HubSource("org/legal", "main")),
        ("hf://org/legal@v1/sub/folder", HubSource("org/legal", "v1", "sub/folder")),
        ("org/legal@refs/pr/3/sub", HubSource("org/legal", "refs/pr/3", "sub")),
        ("org/legal@feature%2Fshort/sub", HubSource("org/legal", "feature/short", "sub")),
        ("https://huggingface.co/org/legal", HubSource("org/legal")),
        ("https://huggingface.co/org/legal/tree/main/sub", HubSource("org/legal", "main", "sub")),
        ("huggingface.co/org/legal/tree/feature%2Fshort", HubSource("org/legal", "feature/short")),
        ("https://hf.co/org/legal/blob/v1/adapter_config.json", HubSource("org/legal", "v1")),
        (
            "https://huggingface.co/org/legal/resolve/v1/s/a.safetensors?x=1",
            HubSource("org/legal", "v1", "s"),
        ),
        ("https://huggingface.co/org/legal/commit/0a1b2c3", HubSource("org/legal", "0a1b2c3")),
    ],
)
def test_parse_source_tells_folder_hub_and_catalog_apart(text: str, source: object) -> None:
    assert parse_source(text) == source


def test_parse_source_takes_an_existing_folder_for_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "legal").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_source("legal") == FolderSource(Path("legal"))


@pytest.mark.parametrize(
    "text",
    [
        *("", "Legal", "-a", "a" * 97, "a b", "legal@", "legal@-x", "é", "a\n", "x" * 5000),
        *(":", "team:", ":legal", "team:legal:more", "Team:legal", "team:Legal", f"{'a' * 90}:legal1"),
    ],
)
def test_parse_source_refuses_malformed_names(text: str) -> None:
    with pytest.raises(UsageError):
        parse_source(text)


@pytest.mark.parametrize(
    "text",
    ["https://example.com/org/legal", "https://huggingface.co/spaces/org/legal", "https://hf.co/legal"],
)
def test_address_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not (an address of the Hub|the address of a model repository)"):
        parse_source(text)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/legal", "legal"),
        ("runs/Legal v2/checkpoint-500", "legal-v2"),
        ("legal/final/adapter_model", "legal"),
        ("legal/lora", "legal"),
        ("legal/output/checkpoint-7/default", "legal"),
        (f"hub/models--org--legal/snapshots/{'0a' * 20}", "legal"),
        (f"hub/models--org--legal/snapshots/{'0a' * 20}/short", "legal-short"),
    ],
)
def test_folder_gives_a_name_that_says_something(path: str, name: str, tmp_path: Path) -> None:
    assert name_of_folder(tmp_path / path) == name


def test_weights_and_the_config_beside_them_mean_their_folder(tmp_path: Path) -> None:
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    config.touch()
    assert folder_of_adapter(config) == config
    weights.touch()
    assert folder_of_adapter(config) == folder_of_adapter(weights) == tmp_path
    assert parse_source(str(weights)) == FolderSource(tmp_path)


def test_check_name_says_what_it_expects_and_suggests_one() -> None:
    with pytest.raises(UsageError) as caught:
        check_name("My Adapter!")
    assert str(caught.value) == (
        "`My Adapter!` is not a valid name: expected 1 to 96 of `a-z 0-9 . _ -`, "
        "the first a letter or a digit"
    )
    assert caught.value.hint == "such as `my-adapter`"


def test_member_of_a_bundle_has_the_names_of_both_and_no_longer_one_than_others_have() -> None:
    assert member_entry("a" * 90, "legal") == check_entry(f"{'a' * 90}:legal")
    with pytest.raises(UsageError, match=r"has 97 characters, expected at most 96"):
        member_entry("a" * 91, "legal")


def test_check_alias_refuses_a_number() -> None:
    with pytest.raises(UsageError, match="names a version"):
        check_alias("3")


@given(st.text(max_size=300))
def test_suggest_name_always_gives_a_valid_name(text: str) -> None:
    assert check_name(suggest_name(text))


OUTSIDE = ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/", "a\0b"]


@pytest.mark.parametrize("path", OUTSIDE, ids=repr)
def test_a_folder_is_joined_with_no_path_that_leads_out_of_it(path: str) -> None:
    with pytest.raises(InvalidDocument, match="is not a path inside a folder"):
        below(Path("folder"), path)


@given(st.text(alphabet="ab./\0", max_size=8))
def test_what_is_below_a_folder_stays_there(path: str) -> None:
    try:
        place = below(Path("/folder"), path)
    except InvalidDocument:
        return
    assert Path("/folder") in Path(os.path.normpath(place)).parents


@pytest.mark.parametrize(
    "name", [*OUTSIDE, "a/b", ".hidden", "-x", "a\n", "x" * 256, "stra\u00dfe"], ids=repr
)
def test_a_file_name_is_one_plain_part(name: str) -> None:
    with pytest.raises(InvalidDocument, match="cannot name a file of an adapter"):
        check_file_name(name)
    assert check_file_name("LICENSE.txt") == "LICENSE.txt"


@pytest.mark.parametrize("path", ["", "team", "/bundles/../team", "~/team", "/a\0b"], ids=repr)
def test_a_bundle_is_in_an_absolute_place(path: str) -> None:
    with pytest.raises(InvalidDocument, match="is not an absolute path"):
        check_folder_path(path)
    assert check_folder_path("/bundles/Straße") == "/bundles/Straße"
