from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from meteora_registry.registry.catalog.adapters import add_adapter
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.engine import transaction
from meteora_registry.registry.catalog.latest import list_file
from meteora_registry.registry.catalog.query import AdapterQuery
from meteora_registry.registry.catalog.records import AdapterVersion, Target
from meteora_registry.registry.home import Home
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import (
    AlreadyInCatalog,
    BundleRefused,
    MeteoraError,
    NotInCatalog,
    StillInUse,
    UsageError,
)
from meteora_registry.schemas.finding import Effect, Finding, Place, Severity
from meteora_registry.schemas.manifest import Origin
from meteora_registry.schemas.names import CatalogSource, HubSource, parse_catalog_source
from meteora_registry.schemas.verification import Level, Outcome
from support.catalogued import new_adapter, new_bundle, some_inventory, some_verification

FINDING = Finding(
    code="MR121",
    title="The adapter uses DoRA",
    severity=Severity.REFUSE,
    effect=Effect.NOT_FUSABLE,
    place=Place(file="adapter_config.json", field="use_dora"),
    found="`true`",
    expected="`false`",
    why="the delta depends on the base",
    remedy="train it again without",
)


@pytest.fixture
def catalog(any_catalog: Catalog) -> Catalog:
    """An empty catalog; every test here is held on both databases."""
    return any_catalog


def find(catalog: Catalog, text: str) -> AdapterVersion:
    """Return the adapter version of that name."""
    return catalog.find(parse_catalog_source(text))


def test_everything_recorded_of_an_adapter_comes_back(any_catalog: Catalog) -> None:
    new = new_adapter(
        origin=Origin(kind="hub", location="hf://org/legal@abc", commit="abc"),
        stated_base="org/other",
        base_revision="main",
        findings=(FINDING,),
    )
    added = any_catalog.add_version(new, tags=["good", "english"])
    assert added.created
    version = find(any_catalog, "legal")
    assert version == added.version
    for part in (new, new.facts):
        for field in dataclasses.fields(part):
            if field.name != "facts":
                assert getattr(version, field.name) == getattr(part, field.name), field.name
    assert (version.name, version.version, version.tags) == ("legal", 1, ("english", "good"))
    assert (version.rank, version.max_rank, version.scaling, version.dtypes) == (4, 16, 2.0, ("BF16", "F32"))
    assert version.shape_signature == some_inventory().shape_signature
    assert version.targets == (
        Target("q_proj", 32, 32, min_rank=4, max_rank=16, min_scaling=0.5, max_scaling=2.0, layers=2),
        Target("up_proj", 32, 48, min_rank=8, max_rank=8, min_scaling=1.0, max_scaling=1.0, layers=1),
    )
    assert str(version.verdict) == "sound, not fusable"
    assert version.base == "org/other"
    assert version.size_bytes == 1100
    assert version.created_at.utcoffset() is not None


def test_an_adapter_without_lora_factors_is_recorded(catalog: Catalog) -> None:
    version = catalog.add_version(new_adapter(inventory=None)).version
    assert (version.rank, version.max_rank, version.scaling, version.dtypes) == (None, None, None, ())
    assert version.targets == ()


def test_new_content_is_the_next_version_and_old_content_none(shared_catalog: Catalog) -> None:
    assert shared_catalog.add_version(new_adapter(content="1")).version.version == 1
    assert shared_catalog.add_version(new_adapter(content="2")).version.version == 2
    again = shared_catalog.add_version(new_adapter(content="1"), tags=["seen"])
    assert (again.created, str(again.version.source), again.version.tags) == (False, "legal@1", ("seen",))
    assert shared_catalog.versions_of("legal") == (1, 2)
    assert find(shared_catalog, "legal").version == 2
    assert find(shared_catalog, "legal@1").version == 1


def test_the_same_content_with_another_stated_base_is_refused(catalog: Catalog) -> None:
    catalog.add_version(new_adapter())
    assert not catalog.add_version(new_adapter()).created
    with pytest.raises(AlreadyInCatalog) as caught:
        catalog.add_version(new_adapter(stated_base="org/other"))
    assert str(caught.value) == (
        "`legal@1` has this very content, without a stated base, and a version never changes"
    )
    assert caught.value.hint == "remove `legal@1` first, or state another name"


def test_content_is_found_under_every_name(catalog: Catalog) -> None:
    new = new_adapter()
    content = (new.facts.weights_sha256, new.facts.canonical_config_sha256)
    assert catalog.find_content(*content) == ()
    for name in ("legal", "copy"):
        catalog.add_version(dataclasses.replace(new, name=name))
    found = catalog.find_content(*content)
    assert [str(source) for source in found] == ["legal@1", "copy@1"]


MISSING = {
    "nothing": "the catalog has no adapter `nothing`",
    "legal@7": "`legal` has no version 7, it has `1`, `2`",
    "legal@best": "`legal` has no alias `best`, it has `champion`",
    "plain@best": "`plain` has no alias `best`, it has none",
    "team": "`team` is a bundle, expected an adapter",
}


def test_what_is_not_there_is_named_with_what_is(catalog: Catalog) -> None:
    catalog.add_version(new_adapter(content="1"))
    catalog.add_version(new_adapter(content="2"))
    catalog.set_alias(CatalogSource("legal"), "champion")
    plain = catalog.add_version(new_adapter("plain", content="3")).version
    catalog.register_bundle(new_bundle(plain))
    for text, message in MISSING.items():
        with pytest.raises(NotInCatalog) as caught:
            find(catalog, text)
        assert str(caught.value) == message


def test_adapter_is_found_by_where_it_is_from_and_never_by_a_claim(any_catalog: Catalog) -> None:
    def add(content: str, commit: str, folder: str = "", **changes: str) -> AdapterVersion:
        origin = Origin(kind="hub", location=f"hf://org/le_al@{commit}{folder}", commit=commit)
        return any_catalog.add_version(new_adapter("law", content, origin=origin, **changes)).version

    one, two, three = ("1" * 40, "2" * 40, "3" * 40)
    first, second, inside = add("1", one), add("2", two), add("3", two, "/sub")
    add("4", three, claimed_by=f"org/bundle@{three}")
    assert any_catalog.find_from_hub(HubSource("org/le_al")).source == second.source
    assert any_catalog.find_from_hub(HubSource("org/le_al", one)).source == first.source
    assert any_catalog.find_from_hub(HubSource("org/le_al", two, "sub")).source == inside.source
    for other in (HubSource("org/legal"), HubSource("org/le_al", three), HubSource("org/le_al", one, "sub")):
        with pytest.raises(NotInCatalog):
            any_catalog.find_from_hub(other)


def test_an_alias_moves_and_goes(any_catalog: Catalog) -> None:
    any_catalog.add_version(new_adapter(content="1"))
    any_catalog.add_version(new_adapter(content="2"))
    assert str(any_catalog.set_alias(CatalogSource("legal", 1), "champion")) == "legal@1"
    assert find(any_catalog, "legal@champion").version == 1
    assert str(any_catalog.set_alias(CatalogSource("legal"), "champion")) == "legal@2"
    assert find(any_catalog, "legal@champion").aliases == ("champion",)
    assert find(any_catalog, "legal@1").aliases == ()
    any_catalog.remove_alias("legal", "champion")
    with pytest.raises(NotInCatalog):
        find(any_catalog, "legal@champion")


def test_tags_are_added_and_removed(any_catalog: Catalog) -> None:
    any_catalog.add_version(new_adapter())
    source = CatalogSource("legal")
    assert any_catalog.change_tags(source, add=["b", "a", "a"]) == ("a", "b")
    assert any_catalog.change_tags(source, add=["a"], remove=["b", "unknown"]) == ("a",)
    assert find(any_catalog, "legal").tags == ("a",)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda c: c.add_version(new_adapter("Legal", "2")), id="name"),
        pytest.param(
            lambda c: c.add_version(new_adapter(content="2"), tags=["No Tag"]), id="tag of a new version"
        ),
        pytest.param(lambda c: c.change_tags(CatalogSource("legal"), add=["No Tag"]), id="tag"),
        pytest.param(lambda c: c.set_alias(CatalogSource("legal"), "3"), id="alias"),
    ],
)
@pytest.mark.parametrize("any_catalog", ["sqlite"], indirect=True)
def test_a_malformed_word_is_refused_and_changes_nothing(catalog: Catalog, act: object) -> None:
    catalog.add_version(new_adapter())
    before = (catalog.list_adapters(), catalog.history().items)
    with pytest.raises(UsageError):
        act(catalog)  # type: ignore[operator]
    assert (catalog.list_adapters(), catalog.history().items) == before


def test_list_gives_the_latest_version_of_each_adapter_by_name(any_catalog: Catalog) -> None:
    for name, content in (("legal", "1"), ("code", "2"), ("legal", "3")):
        any_catalog.add_version(new_adapter(name, content), tags=[f"tag{content}"])
    any_catalog.register_bundle(new_bundle(find(any_catalog, "code")))
    listed = any_catalog.list_adapters()
    assert [(each.name, each.version, each.tags) for each in listed] == [
        ("code", 1, ("tag2",)),
        ("legal", 2, ("tag3",)),
    ]
    assert [bundle.name for bundle in any_catalog.list_bundles()] == ["team"]


def test_listing_bundles_takes_as_many_statements_for_many_as_for_one(any_catalog: Catalog) -> None:
    executed: list[str] = []
    event.listen(any_catalog._engine, "before_cursor_execute", lambda *call: executed.append(call[2]))
    counts = []
    for number in range(3):
        adapter = any_catalog.add_version(new_adapter(f"adapter-{number}", str(number))).version
        bundle = new_bundle(adapter, name=f"bundle-{number}", verification=some_verification())
        any_catalog.register_bundle(bundle)
        any_catalog.change_tags(CatalogSource(bundle.name), add=["good"])
        any_catalog.set_alias(CatalogSource(bundle.name), "shipped")
        executed.clear()
        assert len(any_catalog.list_bundles()) == number + 1
        counts.append(len(executed))
    assert counts == [counts[0]] * 3


def test_a_listing_tells_of_a_bundle_what_its_record_does(any_catalog: Catalog, home: Home) -> None:
    adapter = any_catalog.add_version(new_adapter(), tags=["b", "a"]).version
    any_catalog.set_alias(adapter.source, "champion")
    any_catalog.add_version(new_adapter("empty", "2", inventory=None, license=None))
    for level, outcome in ((Level.SOURCE, Outcome.PASS), (Level.INTEGRITY, Outcome.FAIL)):
        verification = some_verification(outcome=outcome, level=level)
        any_catalog.register_bundle(new_bundle(adapter, verification=verification))
    any_catalog.change_tags(CatalogSource("team"), add=["d", "c"])
    any_catalog.set_alias(CatalogSource("team"), "shipped")

    listing = any_catalog.list_latest()
    assert listing.adapters == any_catalog.search(AdapterQuery()).items
    (summary,), (record,) = listing.bundles, any_catalog.list_bundles()
    shared = {field.name for field in dataclasses.fields(summary)} - {"verified", "of_members"}
    assert {name: getattr(summary, name) for name in shared} == {
        name: getattr(record, name) for name in shared
    }
    assert summary.verified == tuple((each.level, each.outcome) for each in record.verifications)
    if home.catalog_file.exists():
        assert list_file(home.catalog_file) == listing


def test_a_removed_number_never_comes_again(shared_catalog: Catalog) -> None:
    shared_catalog.add_version(new_adapter(content="1"))
    shared_catalog.add_version(new_adapter(content="2"))
    shared_catalog.set_alias(CatalogSource("legal", 2), "champion")
    removal = shared_catalog.remove(CatalogSource("legal", 2))
    assert (removal.kind, [str(each) for each in removal.versions]) == ("adapter", ["legal@2"])
    assert shared_catalog.versions_of("legal") == (1,)
    shared_catalog.remove(CatalogSource("legal"))
    with pytest.raises(NotInCatalog, match="has no adapter `legal`"):
        find(shared_catalog, "legal")
    assert shared_catalog.list_adapters() == ()
    assert shared_catalog.add_version(new_adapter(content="2")).version.version == 3


def test_remove_gives_the_digests_and_the_catalog_says_which_are_still_referred_to(catalog: Catalog) -> None:
    first = catalog.add_version(new_adapter("legal", "1")).version
    catalog.add_version(new_adapter("code", "2"))
    removal = catalog.remove(CatalogSource("legal"), keep=None)
    assert removal.digests == {first.weights_sha256, first.config_sha256}
    # Both have the same config.
    assert catalog.referenced(removal.digests) == {first.config_sha256}


def test_a_member_of_a_bundle_cannot_be_removed(any_catalog: Catalog) -> None:
    for content in ("1", "2"):
        any_catalog.add_version(new_adapter(content=content))
    any_catalog.register_bundle(new_bundle(find(any_catalog, "legal@1")))
    for text in ("legal", "legal@1"):
        with pytest.raises(StillInUse) as caught:
            any_catalog.remove(parse_catalog_source(text))
        assert str(caught.value) == "`legal@1` cannot be removed: used by `team@1`"
    any_catalog.remove(CatalogSource("legal", 2))
    any_catalog.remove(CatalogSource("team"))
    any_catalog.remove(CatalogSource("legal"))
    assert any_catalog.versions_of("legal") == ()


def test_everything_recorded_of_a_bundle_comes_back(any_catalog: Catalog) -> None:
    adapters = [any_catalog.add_version(new_adapter(name, name)).version for name in ("legal", "code")]
    new = new_bundle(*adapters, verification=some_verification())
    bundle = any_catalog.register_bundle(new)
    assert bundle == any_catalog.find_bundle(CatalogSource("team"))
    assert bundle.path == new.path
    for field in dataclasses.fields(new.facts):
        assert getattr(bundle, field.name) == getattr(new.facts, field.name), field.name
    assert [(each.position, each.name, str(each.adapter)) for each in bundle.members] == [
        (0, "legal", "legal@1"),
        (1, "code", "code@1"),
    ]
    assert [each.record for each in bundle.verifications] == [some_verification()]


def test_a_member_that_was_never_catalogued_is_recorded_by_its_digests(catalog: Catalog) -> None:
    adapter = catalog.add_version(new_adapter()).version
    new = new_bundle(adapter)
    members = tuple(dataclasses.replace(member, adapter=None) for member in new.members)
    bundle = catalog.register_bundle(dataclasses.replace(new, members=members))
    assert [(each.adapter, each.weights_sha256) for each in bundle.members] == [
        (None, adapter.weights_sha256)
    ]
    catalog.remove(CatalogSource("legal"))


def test_the_same_manifest_elsewhere_is_the_same_version_at_its_new_place(catalog: Catalog) -> None:
    adapter = catalog.add_version(new_adapter()).version
    catalog.register_bundle(new_bundle(adapter))
    assert catalog.register_bundle(new_bundle(adapter, content="2")).version == 2
    moved = catalog.register_bundle(new_bundle(adapter, path=Path("/elsewhere")))
    assert (moved.version, moved.path) == (1, Path("/elsewhere"))


def test_adapters_and_bundles_share_their_names(any_catalog: Catalog) -> None:
    adapter = any_catalog.add_version(new_adapter("team")).version
    with pytest.raises(AlreadyInCatalog) as caught:
        any_catalog.register_bundle(new_bundle(adapter))
    assert str(caught.value) == "the name `team` is taken by an adapter"
    any_catalog.remove(CatalogSource("team"))
    bundle = any_catalog.register_bundle(new_bundle())
    assert bundle.version == 2


def test_a_verification_goes_to_every_bundle_with_its_manifest_in_its_place(any_catalog: Catalog) -> None:
    path = Path("/bundles/team")
    assert any_catalog.record_verification(some_verification(), path) == ()
    adapter = any_catalog.add_version(new_adapter()).version
    for name in ("team", "copy"):
        any_catalog.register_bundle(new_bundle(adapter, name=name))
    failed = some_verification(outcome=Outcome.FAIL)
    assert any_catalog.record_verification(failed, Path("/elsewhere/team")) == ()
    assert [str(each) for each in any_catalog.record_verification(failed, path)] == ["team@1", "copy@1"]
    assert any_catalog.find_bundle(CatalogSource("copy")).verifications[-1].outcome is Outcome.FAIL


def test_record_that_contradicts_itself_is_not_recorded(any_catalog: Catalog) -> None:
    forged = some_verification().model_copy(update={"problems": ("all factors are wrong",)})
    with pytest.raises(BundleRefused, match="is not what a verification writes: it states the outcome"):
        any_catalog.register_bundle(new_bundle(verification=forged))
    bundle = any_catalog.register_bundle(new_bundle())
    with pytest.raises(BundleRefused, match="is not what a verification writes"):
        any_catalog.record_verification(forged, bundle.path)
    assert any_catalog.find_bundle(bundle.source).verifications == ()


def test_only_a_pass_that_was_made_here_makes_a_bundle_verified(any_catalog: Catalog) -> None:
    passed = some_verification()
    bundle = any_catalog.register_bundle(new_bundle(verification=passed, claimed_by="org/bundle@1"))
    assert [each.claimed_by for each in bundle.verifications] == ["org/bundle@1"]
    assert not any_catalog.is_verified(passed.manifest_sha256)
    any_catalog.record_verification(some_verification(outcome=Outcome.FAIL), bundle.path)
    assert not any_catalog.is_verified(passed.manifest_sha256)
    any_catalog.record_verification(passed, bundle.path)
    assert any_catalog.is_verified(passed.manifest_sha256)
    assert not any_catalog.is_verified(some_verification("2").manifest_sha256)
    claims = [each.details for each in any_catalog.history("team").items if each.action == "claim"]
    assert claims == [{"level": "source", "outcome": "pass", "claimed_by": "org/bundle@1"}]


def test_bundle_cannot_have_the_name_of_a_member(any_catalog: Catalog) -> None:
    with pytest.raises(UsageError):
        any_catalog.register_bundle(new_bundle(name="team:legal"))


DIGEST = Digest.of_bytes(b"other")
HUB = Origin(kind="hub", location="hf://org/legal@0a1b", commit="0a1b")


@pytest.mark.parametrize(
    "other",
    [
        {"weights_sha256": DIGEST},
        {"config_sha256": DIGEST},
        {"location": "hf://org/legal@0a1c"},
        {"license_name": "mit"},
        {"license_name": None},
        {},
    ],
    ids=["weights", "config", "location", "license", "no license", "same"],
)
def test_claimed_origin_is_confirmed_for_the_same_files_from_the_same_place_alone(
    any_catalog: Catalog, other: dict[str, Any]
) -> None:
    claimed = new_adapter("team:legal", origin=HUB, claimed_by="org/team@1")
    any_catalog.add_version(claimed)
    content = {
        "weights_sha256": claimed.facts.weights_sha256,
        "config_sha256": claimed.facts.config_sha256,
    }
    place = {"location": HUB.location, "license_name": claimed.facts.license}
    any_catalog.confirm_origin(**content | place | other)
    version = any_catalog.find(CatalogSource("team:legal"))
    assert version.claimed_by == ("org/team@1" if other else None)
    assert any_catalog.find_claims(**content) == (version.claimed_by,)
    found = [each.details for each in any_catalog.history().items if each.action == "confirm"]
    assert found == ([] if other else [{"origin": HUB.location, "claimed_by": "org/team@1"}])


def test_files_are_claimed_by_every_bundle_they_came_out_of(any_catalog: Catalog) -> None:
    new = new_adapter("team:legal", claimed_by="org/team@1")
    content = new.facts.weights_sha256, new.facts.config_sha256
    assert any_catalog.find_claims(*content) == ()
    for each in (new, new_adapter("law"), new_adapter("next:legal", claimed_by="org/next@1")):
        any_catalog.add_version(each)
    assert any_catalog.find_claims(*content) == ("org/team@1", None, "org/next@1")
    assert any_catalog.find_claims(content[0], DIGEST) == ()
    assert any_catalog.find_claims(DIGEST, content[1]) == ()


def test_every_change_leaves_an_event(catalog: Catalog) -> None:
    adapter = catalog.add_version(new_adapter(), tags=["good"]).version
    source = CatalogSource("legal")
    catalog.set_alias(source, "champion")
    catalog.remove_alias("legal", "champion")
    catalog.change_tags(source, remove=["good"])
    catalog.register_bundle(new_bundle(adapter, verification=some_verification()))
    catalog.register_bundle(new_bundle(adapter, path=Path("/elsewhere")))
    catalog.remove(CatalogSource("team"))
    catalog.remove(source)
    events = [
        (each.action, each.subject, each.name, each.version) for each in reversed(catalog.history().items)
    ]
    assert events == [
        ("spelling", "base", "org/base", None),
        ("add", "adapter", "legal", 1),
        ("tags", "adapter", "legal", 1),
        ("alias", "adapter", "legal", 1),
        ("alias", "adapter", "legal", 1),
        ("tags", "adapter", "legal", 1),
        ("add", "bundle", "team", 1),
        ("verify", "bundle", "team", 1),
        ("move", "bundle", "team", 1),
        ("remove", "bundle", "team", 1),
        ("remove", "adapter", "legal", 1),
    ]
    assert [each.action for each in catalog.history("team", limit=2).items] == ["remove", "move"]


def test_what_changes_nothing_leaves_no_event(catalog: Catalog) -> None:
    adapter = catalog.add_version(new_adapter(), tags=["good"]).version
    catalog.set_alias(CatalogSource("legal"), "champion")
    catalog.register_bundle(new_bundle(adapter))
    before = catalog.history().items
    catalog.add_version(new_adapter(), tags=["good"])
    catalog.set_alias(CatalogSource("legal"), "champion")
    catalog.change_tags(CatalogSource("legal"), add=["good"], remove=["other"])
    catalog.register_bundle(new_bundle(adapter))
    assert catalog.history().items == before


LLAMA, MIRROR = "meta-llama/Llama-2-7b-hf", "mirror/llama-2-7b"
QUANTISED = "mirror/llama-2-7b-bnb-4bit"


# What is stated and declared, and the base that it is; none is learned for those after it.
SPELLINGS = {
    "declared": (None, LLAMA, LLAMA),
    "whatever the case": (None, LLAMA.upper(), LLAMA),
    "a spelling it learned": (None, MIRROR, LLAMA),
    "a quantised copy was never learned": (None, QUANTISED, QUANTISED),
    "a path was never learned": (None, "/content/llama", None),
    "stated for a path": (LLAMA, "D:\\models\\llama", LLAMA),
    "neither is there": (None, None, None),
    "what is stated comes first": ("org/base", MIRROR, "org/base"),
}


def test_a_base_is_known_by_its_spellings(catalog: Catalog) -> None:
    catalog.add_version(new_adapter("a", "1", declared_base=LLAMA))
    catalog.add_version(new_adapter("b", "2", declared_base=MIRROR, stated_base=LLAMA))
    catalog.add_version(new_adapter("q", "5", declared_base=QUANTISED, stated_base=LLAMA))
    catalog.add_version(new_adapter("c", "3", declared_base="/content/llama", stated_base=LLAMA))
    for content, (stated, declared, base_model) in SPELLINGS.items():
        new = new_adapter("d", content, declared_base=declared, stated_base=stated)
        assert catalog.add_version(new).version.base_model == base_model, content


def test_known_spellings_are_one_base_without_being_learned(catalog: Catalog) -> None:
    catalog.add_version(new_adapter("a", "1", declared_base="gpt2"))
    for spelling in ("gpt2", "GPT2", "openai-community/gpt2", "/hub/models--gpt2/snapshots/" + "0a" * 20):
        added = catalog.add_version(new_adapter("b", spelling, declared_base=spelling))
        assert added.version.base_model == "openai-community/gpt2"
        assert catalog.name_of_base(spelling) == "openai-community/gpt2"
        found = catalog.search(AdapterQuery(base=spelling)).items
        assert [each.name for each in found] == ["a", "b"]


def test_quantised_copy_is_not_learned_as_a_spelling(catalog: Catalog) -> None:
    catalog.add_version(new_adapter("a", "1", declared_base=f"{LLAMA}-bnb-4bit", stated_base=LLAMA))
    added = catalog.add_version(new_adapter("b", "2", declared_base=f"{LLAMA}-bnb-4bit"))
    assert added.version.base_model == f"{LLAMA}-bnb-4bit"


def test_a_writer_waits_for_the_other_and_takes_the_next_number(shared_catalog: Catalog) -> None:
    with ThreadPoolExecutor() as pool:
        with transaction(shared_catalog._engine, writes=True) as session:
            add_adapter(session, new_adapter(content="1"), tags=())
            second = pool.submit(shared_catalog.add_version, new_adapter(content="2"))
            with pytest.raises(TimeoutError):
                second.result(timeout=0.2)
            # A reader does not wait.
            assert shared_catalog.versions_of("legal") == ()
        assert second.result().version.version == 2
    assert shared_catalog.versions_of("legal") == (1, 2)


def test_foreign_text_that_no_database_can_hold_is_kept_as_far_as_it_can_be(any_catalog: Catalog) -> None:
    version = any_catalog.add_version(
        new_adapter(declared_base="a\0b", license="\ud800x", task_type="y" * 5000)
    ).version
    assert (version.declared_base, version.license) == ("a\ufffdb", "\ufffdx")
    assert version.task_type == "y" * 1024


def test_a_failure_undoes_the_whole_call(catalog: Catalog) -> None:
    catalog.add_version(new_adapter())
    unknown = dataclasses.replace(find(catalog, "legal"), id=999)
    with pytest.raises(MeteoraError):
        catalog.register_bundle(new_bundle(unknown))
    assert catalog.list_bundles() == ()
    assert catalog.versions_of("team") == ()
    assert [event.name for event in catalog.history("team").items] == []
