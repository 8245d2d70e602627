"""Names that change, and what people state about them: notes and owners."""

from __future__ import annotations

import re

import pytest

from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.query import AdapterQuery
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import AlreadyInCatalog, NotInCatalog, UsageError
from meteora_registry.schemas.names import CatalogSource, parse_catalog_source
from meteora_registry.schemas.signers import SignedBy
from support.catalogued import new_adapter, new_bundle, some_verification

LEGAL, LAW = CatalogSource("legal"), CatalogSource("law")


def sound(catalog: Catalog) -> bool:
    """Return whether neither the schema, the index, the trash nor the history has a problem."""
    return database.find_problems(catalog._engine) == [] and catalog.check_history().problems == ()


def test_renamed_adapter_keeps_versions_aliases_and_its_place_in_bundles(any_catalog: Catalog) -> None:
    for content in ("1", "2"):
        any_catalog.add_version(new_adapter(content=content), tags=[f"tag{content}"])
    any_catalog.set_alias(CatalogSource("legal", 1), "champion")
    any_catalog.edit("legal", owner="us")
    any_catalog.register_bundle(new_bundle(any_catalog.find(LEGAL), verification=some_verification()))
    before = any_catalog.find(LEGAL)
    assert [str(each) for each in any_catalog.rename("legal", "law")] == ["law@1", "law@2"]
    after = any_catalog.find(LAW)
    assert (after.id, after.version, after.tags, after.owner) == (before.id, 2, ("tag2",), "us")
    assert any_catalog.find(parse_catalog_source("law@champion")).version == 1
    (member,) = any_catalog.find_bundle(CatalogSource("team")).members
    assert (member.name, str(member.adapter)) == ("legal", "law@2")
    with pytest.raises(NotInCatalog):
        any_catalog.find(LEGAL)
    assert [each.name for each in any_catalog.search(AdapterQuery(text="law")).items] == ["law"]
    assert any_catalog.search(AdapterQuery(text="legal")).items == ()
    assert sound(any_catalog)


def test_history_leads_from_the_old_name_to_the_new_one_and_back(any_catalog: Catalog) -> None:
    adapter = any_catalog.add_version(new_adapter()).version
    any_catalog.rename("legal", "law")
    (last, *_) = any_catalog.history("legal").items
    assert (last.action, last.version, last.details) == ("rename", None, {"to": "law"})
    (only,) = any_catalog.history("law").items
    assert only.details == {"previous": "legal@1", "weights_sha256": str(adapter.weights_sha256)}


def test_signature_of_a_renamed_and_of_a_restored_bundle_is_still_found(any_catalog: Catalog) -> None:
    any_catalog.register_bundle(new_bundle())
    signed_by = SignedBy(method="key", signer="us", fingerprint=Digest.of_bytes(b"key"), issuer=None)
    any_catalog.record_signature(CatalogSource("team"), "sign", signed_by)
    any_catalog.rename("team", "crew")
    assert [each.name for each in any_catalog.list_signatures(CatalogSource("crew"))] == ["team"]
    any_catalog.remove(CatalogSource("crew"))
    any_catalog.restore(CatalogSource("crew"), name="squad")
    assert [each.name for each in any_catalog.list_signatures(CatalogSource("squad"))] == ["team"]


def test_old_name_is_free_and_its_numbers_go_on(any_catalog: Catalog) -> None:
    any_catalog.add_version(new_adapter(content="1"))
    any_catalog.rename("legal", "law")
    assert any_catalog.add_version(new_adapter(content="2")).version.source == CatalogSource("legal", 2)
    with pytest.raises(AlreadyInCatalog, match="the name `legal` is taken by an adapter"):
        any_catalog.rename("law", "legal")
    any_catalog.remove(LEGAL, keep=None)
    # Back under the old name: its version 1 was this very content.
    assert any_catalog.rename("law", "legal") == (CatalogSource("legal", 1),)
    assert any_catalog.add_version(new_adapter(content="3")).version.source == CatalogSource("legal", 3)
    assert sound(any_catalog)


def test_number_never_comes_to_mean_other_bytes_by_a_new_name(any_catalog: Catalog) -> None:
    any_catalog.add_version(new_adapter("law", "1"))
    any_catalog.remove(LAW)
    any_catalog.add_version(new_adapter("legal", "2"))
    with pytest.raises(AlreadyInCatalog, match="`law@1` was something else before"):
        any_catalog.rename("legal", "law")
    assert any_catalog.versions_of("legal") == (1,)
    assert any_catalog.restore(LAW).versions == (CatalogSource("law", 1),)
    assert sound(any_catalog)


def test_members_of_a_pulled_bundle_are_called_after_its_new_name(any_catalog: Catalog) -> None:
    member = any_catalog.add_version(new_adapter("team:legal", claimed_by="org/team@1")).version
    any_catalog.register_bundle(new_bundle(member))
    any_catalog.rename("team", "crew")
    (found,) = any_catalog.find_bundle(CatalogSource("crew")).members
    assert str(found.adapter) == "crew:legal@1"
    with pytest.raises(UsageError) as caught:
        any_catalog.rename("crew", "c" * 96)
    assert caught.value.hint == "choose a shorter name for the bundle"
    assert any_catalog.list_names() == ("crew", "crew:legal")
    assert sound(any_catalog)


@pytest.mark.parametrize(
    ("name", "new", "error", "message"),
    [
        ("legal", "code", AlreadyInCatalog, "the name `code` is taken by an adapter"),
        ("legal", "legal", AlreadyInCatalog, "`legal` has that name already"),
        ("legal", "No Name", UsageError, "`No Name` is not a valid new name"),
        ("legal", "a:b", UsageError, "`a:b` is not a valid new name"),
        ("team:code", "mine", UsageError, "`team:code` is called after its bundle"),
        ("nothing", "mine", NotInCatalog, "the catalog has no adapter or bundle `nothing`"),
    ],
)
def test_rename_refuses_a_name_that_cannot_be(
    catalog: Catalog, name: str, new: str, error: type[Exception], message: str
) -> None:
    for each in ("legal", "code", "team:code"):
        catalog.add_version(new_adapter(each, each))
    with pytest.raises(error, match=re.escape(message)):
        catalog.rename(name, new)
    assert catalog.list_names() == ("code", "legal", "team:code")


def test_note_and_owner_are_stated_found_and_taken_away(any_catalog: Catalog) -> None:
    any_catalog.add_version(new_adapter(content="1"))
    any_catalog.add_version(new_adapter(content="2"))
    any_catalog.edit("legal", note="  for\n contracts ", owner="Ann")
    found = any_catalog.find(CatalogSource("legal", 1))
    assert (found.note, found.owner) == ("for contracts", "Ann")
    assert [each.owner for each in any_catalog.search(AdapterQuery(text="contracts ann")).items] == ["Ann"]
    any_catalog.edit("legal", note="")
    any_catalog.edit("legal", owner="Ann")
    assert any_catalog.search(AdapterQuery(text="contracts")).items == ()
    events = [each.details for each in any_catalog.history("legal").items if each.action == "edit"]
    assert events == [
        {"note": None, "previous": {"note": "for contracts"}},
        {"note": "for contracts", "owner": "Ann", "previous": {"note": None, "owner": None}},
    ]
    assert sound(any_catalog)


def test_note_cannot_be_longer_than_a_reader_reads(catalog: Catalog) -> None:
    catalog.add_version(new_adapter())
    with pytest.raises(UsageError, match="the note has 501 characters, expected at most 500"):
        catalog.edit("legal", note="x" * 501)
    with pytest.raises(UsageError, match="the owner has 101 characters, expected at most 100"):
        catalog.edit("legal", owner="x" * 101)


def test_commands_state_and_rename(home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    catalog.add_version(new_adapter())
    at = ["--home", str(home.folder)]
    assert run([*at, "edit", "legal", "--note", "a\x1b[31mb\u202e", "--owner", "us"]) == 0
    assert "note   a\\x1b[31mb\\u202e\n" in capsys.readouterr().out
    assert run([*at, "show", "legal"]) == 0
    assert re.search(r"^owner +us$", capsys.readouterr().out, re.MULTILINE)
    assert run([*at, "rename", "legal", "law"]) == 0
    assert capsys.readouterr().out == "renamed: legal@1 is law@1\n"
    assert run([*at, "rename", "law@1", "tax"]) == 2
    assert "`law@1` is one version, expected the name of all" in capsys.readouterr().err
    assert run([*at, "edit", "law"]) == 2
    assert "nothing to change" in capsys.readouterr().err
