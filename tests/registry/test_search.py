"""Search: every condition against a plain reading of what was added, pages, cursors, and plans."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from meteora_registry.registry.catalog import database, models, search
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.engine import connection_to, transaction
from meteora_registry.registry.catalog.query import (
    AdapterQuery,
    Order,
    decode_cursor,
    encode_cursor,
    words_of,
)
from meteora_registry.registry.catalog.records import AdapterVersion
from meteora_registry.registry.catalog.search_index import rebuild_index
from meteora_registry.registry.home import Home
from meteora_registry.schemas.errors import UsageError
from meteora_registry.schemas.inventory import Inventory
from meteora_registry.schemas.manifest import Origin
from meteora_registry.schemas.names import CatalogSource
from support.catalogued import new_adapter, new_bundle, some_inventory
from support.examples import TIMES, examples
from support.first_catalog import read
from support.postgres import execute

LLAMA, MISTRAL = "meta-llama/Llama-2-7b-hf", "mistralai/Mistral-7B-v0.1"
DAY = timedelta(days=1)
START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Catalog, list[AdapterVersion]]]:
    """Forty versions under twenty names, and all of them as they were recorded; nothing changes them."""
    home = Home(tmp_path_factory.mktemp("search"))
    if request.param == "postgresql":
        migrated = request.getfixturevalue("migrated_url")
        # A database of its own, for other tests empty the other one.
        execute(migrated, "CREATE DATABASE searched TEMPLATE migrated")
        url = migrated.set(database="searched")
        home = Home(home.folder, url.render_as_string(hide_password=False))
    with Catalog.open(home) as catalog:
        fill(catalog)
        yield (
            catalog,
            [
                catalog.find(CatalogSource(name, number))
                for name in sorted(names())
                for number in catalog.versions_of(name)
            ],
        )


def names() -> list[str]:
    # In the order of code points `-` comes before `.`, digits and letters; a language would mix them.
    return [f"{word}{end}" for word in ("a", "b-c", "bc", "b.d", "bd") for end in ("", "-1", "_z", "9")]


def fill(catalog: Catalog, versions: int = 40) -> None:
    """Add versions that differ in every field that a search uses, under twenty names."""
    for index in range(versions):
        name = names()[index % 20]
        catalog.add_version(some_adapter(index, name), tags=[f"t{index % 3}", f"u{index % 7}"])
    catalog.register_bundle(new_bundle(catalog.find(CatalogSource("a")), name="bundle"))
    catalog.remove(CatalogSource("bd9", versions // 20))
    with transaction(catalog._engine, writes=True) as session:
        for row in session.query(models.Version).all():
            row.created_at = START + (row.id % 9) * DAY
    with connection_to(catalog._engine, writes=True) as connection:
        rebuild_index(connection)


def some_adapter(index: int, name: str) -> object:
    modules = some_inventory().modules[: 1 + index % 3]
    inventory = None if index % 11 == 10 else Inventory(modules=modules, rank=4, scaling=2.0)
    return new_adapter(
        name,
        str(index),
        inventory=inventory,
        weights_bytes=1000 * (index % 5),
        declared_base=(LLAMA, "Mirror/L2", MISTRAL, None)[index % 4],
        stated_base=LLAMA if index % 4 == 1 else None,
        license=("mit", "apache-2.0", None)[index % 3],
        origin=Origin(kind="folder", location=f"Straße {index} of_things", commit=None),
    )


def sources(found: tuple[object, ...]) -> list[tuple[str, int]]:
    return [(each.name, each.version) for each in found]  # type: ignore[attr-defined]


def whole(catalog: Catalog, query: AdapterQuery) -> list[tuple[str, int]]:
    """Return the answers of all pages, each page checked to be full but the last."""
    answers = []
    while True:
        page = catalog.search(query)
        answers += sources(page.items)
        if page.next is None:
            return answers
        assert len(page.items) == query.limit
        query = dataclasses.replace(query, after=page.next)


KEYS: dict[Order, Callable[[AdapterVersion], tuple[object, ...]]] = {
    Order.NAME: lambda each: (each.name.encode(), each.version),
    Order.DATE: lambda each: (each.created_at, each.id),
    Order.SIZE: lambda each: (each.weights_bytes, each.id),
    Order.RANK: lambda each: (each.max_rank or 0, each.id),
}


def expected(versions: list[AdapterVersion], query: AdapterQuery) -> list[tuple[str, int]]:
    """Return what a search must find, worked out in plain Python."""
    latest = {each.name: each.version for each in sorted(versions, key=lambda each: each.version)}
    met = [each for each in versions if meets(each, query)]
    if not query.all_versions:
        met = [each for each in met if latest[each.name] == each.version]
    met.sort(key=KEYS[query.order], reverse=query.descending)
    return [(each.name, each.version) for each in met]


def meets(each: AdapterVersion, query: AdapterQuery) -> bool:
    rank, base = each.max_rank or 0, each.base_model
    words = words_of([each.name, *each.tags, each.origin.location, each.base, each.declared_base, base,
                      each.license, each.task_type])  # fmt: skip
    wanted_base = {LLAMA: LLAMA, "mirror/l2": LLAMA, MISTRAL.upper(): MISTRAL}.get(
        query.base or "", "unknown"
    )
    return all(
        (
            query.base is None or base == wanted_base,
            query.min_rank is None or rank >= max(query.min_rank, 1),
            query.max_rank is None or 1 <= rank <= query.max_rank,
            set(query.targets) <= {target.kind for target in each.targets},
            set(query.tags) <= set(each.tags),
            query.license is None or each.license == query.license,
            query.sound in (None, each.verdict.sound),
            query.fusable in (None, each.verdict.fusable),
            query.min_bytes is None or each.weights_bytes >= query.min_bytes,
            query.max_bytes is None or each.weights_bytes <= query.max_bytes,
            query.added_from is None or each.created_at >= query.added_from,
            query.added_before is None or each.created_at < query.added_before,
            all(any(word.startswith(prefix) for word in words) for prefix in query.words),
        )
    )


QUERIES = {
    "everything": {},
    "base": {"base": LLAMA},
    "base as a mirror spells it": {"base": "mirror/l2"},
    "base whatever the case": {"base": MISTRAL.upper()},
    "base that nobody named": {"base": "nobody/nothing"},
    "least rank": {"min_rank": 8},
    "largest rank": {"max_rank": 8},
    "rank, base and target": {"base": LLAMA, "min_rank": 4, "max_rank": 16, "targets": ("q_proj",)},
    "two targets": {"targets": ("q_proj", "up_proj")},
    "tag": {"tags": ("t1",)},
    "two tags": {"tags": ("t1", "u1")},
    "license": {"license": "mit"},
    "sound": {"sound": True},
    "broken": {"sound": False},
    "not fusable": {"fusable": False},
    "size": {"min_bytes": 1000, "max_bytes": 3000},
    "date": {"added_from": START + DAY, "added_before": START + 4 * DAY},
    "text in the name": {"text": "b-c"},
    "text in the tags": {"text": "T2"},
    "text in the origin": {"text": "STRASSE thing 1"},
    "text in the base": {"text": "mistralai"},
    "text that is nowhere": {"text": "hinterland"},
}


# The limits under which a search takes each of its ways, whatever the size of the catalog.
WAYS = {
    "look at few": {"_MAX_CHECKED": 1000},
    "walk through all": {"_MAX_CHECKED": 0},
    "walk, then walk on": {"_MAX_CHECKED": 0, "_ROWS_PER_ENTRY": 1},
    "look at what two conditions share": {"_MAX_CHECKED": 0, "_ROWS_PER_ENTRY": 0},
    "look at what the rarest meet": {"_MAX_CHECKED": 0, "_ROWS_PER_ENTRY": 0, "_MAX_COUNTED": 1},
}


def ways_of_queries() -> list[tuple[str, str]]:
    """Return each query with the first way and with one of the others, or with every way on request."""
    return [
        (query, way)
        for place, query in enumerate(QUERIES)
        for number, way in enumerate(WAYS)
        if TIMES > 1 or number in (0, 1 + place % (len(WAYS) - 1))
    ]


@pytest.mark.parametrize(("query_name", "way"), ways_of_queries())
def test_search_finds_what_meets_every_condition(
    filled: tuple[Catalog, list[AdapterVersion]],
    query_name: str,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in WAYS[way].items():
        monkeypatch.setattr(search, name, value)
    catalog, versions = filled
    for all_versions in (False, True):
        query = AdapterQuery(**QUERIES[query_name], all_versions=all_versions, limit=9)  # type: ignore[arg-type]
        assert whole(catalog, query) == expected(versions, query)


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
def test_pages_follow_each_other_in_every_order(
    filled: tuple[Catalog, list[AdapterVersion]], order: Order, *, descending: bool
) -> None:
    catalog, versions = filled
    for limit in (6, len(versions) - 1, len(versions)):
        query = AdapterQuery(all_versions=True, order=order, descending=descending, limit=limit)
        assert whole(catalog, query) == expected(versions, query)


@examples(20)
@given(data=st.data(), way=st.sampled_from(list(WAYS)))
def test_any_conditions_together_are_met(
    filled: tuple[Catalog, list[AdapterVersion]], data: st.DataObject, way: str
) -> None:
    catalog, versions = filled
    chosen = data.draw(st.lists(st.sampled_from(list(QUERIES.values())), max_size=4))
    conditions = {key: value for each in chosen for key, value in each.items()}
    query = AdapterQuery(
        **conditions,  # type: ignore[arg-type]
        order=data.draw(st.sampled_from(Order)),
        descending=data.draw(st.booleans()),
        all_versions=data.draw(st.booleans()),
        limit=data.draw(st.integers(1, 20)),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WAYS[way].items():
            patch.setattr(search, name, value)
        assert whole(catalog, query) == expected(versions, query)


def test_an_answer_is_the_summary_that_list_gives(filled: tuple[Catalog, list[AdapterVersion]]) -> None:
    catalog, _ = filled
    listed = {each.name: each for each in catalog.list_adapters()}
    found = catalog.search(AdapterQuery(limit=1000)).items
    assert {each.name: each for each in found} == listed
    assert [each.name for each in found] == sorted(listed, key=str.encode)


def test_pages_are_stable_while_others_write(any_catalog: Catalog) -> None:
    for name in ("b", "d", "f", "h"):
        any_catalog.add_version(new_adapter(name, name))
    first = any_catalog.search(AdapterQuery(limit=2))
    assert sources(first.items) == [("b", 1), ("d", 1)]
    # One more and one less before the place where the page ended, and one more after it.
    for name in ("a", "c", "g"):
        any_catalog.add_version(new_adapter(name, name))
    any_catalog.remove(CatalogSource("d"))
    second = any_catalog.search(AdapterQuery(limit=2, after=first.next))
    assert sources(second.items) == [("f", 1), ("g", 1)]
    assert sources(any_catalog.search(AdapterQuery(limit=2, after=second.next)).items) == [("h", 1)]


def test_tags_that_come_and_go_are_searched_at_once(any_catalog: Catalog) -> None:
    any_catalog.add_version(new_adapter("legal", "1"), tags=["fast"])
    source = CatalogSource("legal")

    def found(**conditions: object) -> int:
        return len(any_catalog.search(AdapterQuery(**conditions)).items)  # type: ignore[arg-type]

    assert (found(text="fast"), found(tags=("fast",)), found(text="slow")) == (1, 1, 0)
    any_catalog.change_tags(source, add=["slow-one"], remove=["fast"])
    assert (found(text="fast"), found(tags=("fast",)), found(text="one slo")) == (0, 0, 1)
    assert found(text="legal") == 1


def test_the_latest_version_is_the_latest_that_is_there(any_catalog: Catalog) -> None:
    for content in ("1", "2"):
        any_catalog.add_version(new_adapter(content=content))
    assert sources(any_catalog.search(AdapterQuery()).items) == [("legal", 2)]
    any_catalog.remove(CatalogSource("legal", 2))
    assert sources(any_catalog.search(AdapterQuery()).items) == [("legal", 1)]
    any_catalog.remove(CatalogSource("legal"))
    assert any_catalog.search(AdapterQuery()).items == ()


def test_the_index_kept_by_every_change_is_the_one_made_anew(any_catalog: Catalog) -> None:
    fill(any_catalog, 20)
    any_catalog.change_tags(CatalogSource("a"), add=["new"], remove=["t0"])
    any_catalog.add_version(new_adapter("a", "0"), tags=["again"])
    kept = read(any_catalog._engine)
    with connection_to(any_catalog._engine, writes=True) as connection:
        rebuild_index(connection)
    assert read(any_catalog._engine) == kept


def test_an_index_that_differs_from_the_catalog_is_reported(any_catalog: Catalog) -> None:
    for name in ("a", "b"):
        any_catalog.add_version(new_adapter(name, name))
    assert database.find_problems(any_catalog._engine) == []
    with connection_to(any_catalog._engine, writes=True) as connection:
        connection.execute(update(models.SearchRow).where(models.SearchRow.name == "a").values(max_rank=99))
    assert database.find_problems(any_catalog._engine) == [
        "the search's index lacks 1 adapter versions as they are, and has 1 as they are not"
    ]
    with connection_to(any_catalog._engine, writes=True) as connection:
        rebuild_index(connection)
        connection.execute(update(models.SearchWord).where(models.SearchWord.word == "b").values(word="c"))
    assert database.find_problems(any_catalog._engine) == [
        "the search's index has other words than theirs for 1 adapter versions"
    ]


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"limit": 0}, "a page of 0 adapters, expected 1 to 1000"),
        ({"limit": 1001}, "a page of 1001 adapters, expected 1 to 1000"),
        ({"min_rank": 8, "max_rank": 4}, "no rank is at least 8 and at most 4"),
        ({"min_bytes": -1}, "the size -1 is out of range"),
        ({"max_rank": 2**63}, "the rank 9223372036854775808 is out of range"),
        ({"text": "-- _"}, "'-- _' has no word to search for"),
        ({"added_from": datetime(2026, 1, 1)}, "`2026-01-01 00:00:00` has no time zone"),
        ({"targets": ("x",) * 21}, "more than 20 words, tags and targets in one search"),
        (
            {"tags": ("No",)},
            "`No` is not a valid tag: expected 1 to 96 of `a-z 0-9 . _ -`, the first a letter or a digit",
        ),
    ],
    ids=str,
)
def test_a_query_that_nothing_can_meet_is_refused(conditions: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        AdapterQuery(**conditions)  # type: ignore[arg-type]
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "value", [2**63, -(2**63) - 1, 10**300, "a\0b"], ids=["2^63", "-2^63", "huge", "zero"]
)
def test_cursor_with_a_value_that_no_database_takes_is_refused(value: int | str) -> None:
    question = ("history", None)
    with pytest.raises(UsageError, match="is not a cursor of such a page"):
        decode_cursor(encode_cursor(question, (value,)), question, (type(value),))


def test_a_cursor_is_good_for_its_own_search_alone(catalog: Catalog) -> None:
    for name in ("a", "b"):
        catalog.add_version(new_adapter(name, name))
    cursor = catalog.search(AdapterQuery(limit=1)).next
    assert cursor is not None
    # Another number of answers is still the same search.
    assert sources(catalog.search(AdapterQuery(limit=9, after=cursor)).items) == [("b", 1)]
    with pytest.raises(UsageError) as caught:
        catalog.search(AdapterQuery(limit=1, after=cursor, descending=True))
    assert str(caught.value) == "the cursor belongs to a search with other filters or another order"
    for damaged in ("", "x", cursor[:-4], "é" * 8, "W10", "bnVsbA", "[" * 90, "A" * 5000):
        with pytest.raises(UsageError, match="is not a cursor of such a page"):
            catalog.search(AdapterQuery(limit=1, after=damaged))


def test_words_are_bounded_and_know_no_case() -> None:
    assert words_of(["Llama-3.1_8B", None, "\uff26ull straße"]) == (
        "llama",
        "3",
        "1",
        "8b",
        "full",
        "strasse",
    )
    assert words_of(["x" * 100]) == ("x" * 64,)
    assert len(words_of([" ".join(map(str, range(1000)))])) == 256
