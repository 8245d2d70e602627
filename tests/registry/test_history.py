"""The audit trail: who did what to what, in pages, with the previous values."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

import pytest

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.schemas.errors import StillInUse, UsageError
from meteora_registry.schemas.names import CatalogSource
from support.catalogued import new_adapter, new_bundle, some_verification

LEGAL = CatalogSource("legal")


def test_every_change_says_who_and_what_stood_there_before(shared_catalog: Catalog) -> None:
    for content in ("1", "2"):
        shared_catalog.add_version(new_adapter(content=content))
    shared_catalog.set_alias(CatalogSource("legal", 1), "champion")
    shared_catalog.set_alias(CatalogSource("legal", 2), "champion")
    shared_catalog.remove_alias("legal", "champion")
    shared_catalog.change_tags(LEGAL, add=["a", "b"])
    shared_catalog.change_tags(LEGAL, add=["c"], remove=["a"])
    shared_catalog.register_bundle(new_bundle(verification=some_verification()))
    shared_catalog.register_bundle(new_bundle(path=Path("/elsewhere")))
    shared_catalog.remove(CatalogSource("legal", 1))
    found = [(each.action, each.version, each.details) for each in reversed(shared_catalog.history().items)]
    weights = [str(new_adapter(content=content).facts.weights_sha256) for content in ("1", "2")]
    assert found == [
        ("spelling", None, {"spelling": "org/base"}),
        ("add", 1, {"weights_sha256": weights[0], "origin": "folder"}),
        ("add", 2, {"weights_sha256": weights[1], "origin": "folder"}),
        ("alias", 1, {"alias": "champion", "previous": None}),
        ("alias", 2, {"alias": "champion", "previous": 1}),
        ("alias", 2, {"alias": "champion", "previous": 2, "removed": True}),
        ("tags", 2, {"added": ["a", "b"], "removed": []}),
        ("tags", 2, {"added": ["c"], "removed": ["a"]}),
        (
            "add",
            1,
            {
                "manifest_sha256": str(new_bundle().facts.manifest_sha256),
                "path": "/bundles/team",
                "gate": "not fitted",
            },
        ),
        ("verify", 1, {"level": "source", "outcome": "pass"}),
        ("move", 1, {"previous": "/bundles/team"}),
        ("remove", 1, {"kept_days": 30}),
    ]
    assert {each.actor for each in shared_catalog.history().items} == {
        f"{getpass.getuser()}@{socket.gethostname()}"
    }


def test_the_actor_can_be_stated(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METEORA_ACTOR", "ci: job 17 of main")
    catalog.add_version(new_adapter())
    monkeypatch.setenv("METEORA_ACTOR", "")
    catalog.change_tags(LEGAL, add=["a"])
    actors = [each.actor for each in catalog.history("legal").items]
    assert actors == [f"{getpass.getuser()}@{socket.gethostname()}", "ci: job 17 of main"]


def test_what_was_refused_leaves_no_event(any_catalog: Catalog) -> None:
    adapter = any_catalog.add_version(new_adapter()).version
    any_catalog.register_bundle(new_bundle(adapter))
    before = any_catalog.history()
    with pytest.raises(StillInUse):
        any_catalog.remove(LEGAL)
    with pytest.raises(UsageError):
        any_catalog.change_tags(LEGAL, add=["No Tag"])
    assert any_catalog.history() == before


def test_pages_go_back_to_the_first_event_while_others_write(shared_catalog: Catalog) -> None:
    shared_catalog.add_version(new_adapter())
    for index in range(7):
        shared_catalog.change_tags(LEGAL, add=[f"t{index}"])
    whole = shared_catalog.history("legal").items
    assert len(whole) == 8
    seen, after = [], None
    while True:
        page = shared_catalog.history("legal", limit=3, after=after)
        seen += page.items
        shared_catalog.change_tags(LEGAL, add=[f"later{len(seen)}"])
        if page.next is None:
            break
        after = page.next
    assert tuple(seen) == whole
    assert shared_catalog.history("legal", limit=8, after=None).next is not None
    with pytest.raises(UsageError, match="belongs to a search with other filters"):
        shared_catalog.history("other", after=after)
    for limit in (0, 1001):
        with pytest.raises(UsageError, match=f"a page of {limit} events, expected 1 to 1000"):
            shared_catalog.history(limit=limit)


def test_history_prints_what_happened_also_of_what_is_gone(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METEORA_ACTOR", "somebody")
    assert run(["history"]) == 0
    assert capsys.readouterr() == ("", "nothing was ever recorded\n")
    catalog.add_version(new_adapter(), tags=["good"])
    catalog.remove(LEGAL)
    assert run(["history", "legal", "--limit", "2"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[3:] for line in out.splitlines()[1:]] == [
        ["somebody", "remove", "adapter", "legal@1", "kept_days=30"],
        ["somebody", "tags", "adapter", "legal@1", 'added=["good"]', "removed=[]"],
    ]
    cursor = err.strip().rpartition(" ")[2]
    assert run(["history", "legal", "--after", cursor, "--format", "json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert ([event["action"] for event in page["events"]], page["next"]) == (["add"], None)
    assert run(["history", "nobody"]) == 0
    assert capsys.readouterr().err == "nothing was ever recorded of `nobody`\n"
