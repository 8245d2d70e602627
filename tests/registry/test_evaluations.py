"""Evaluations in the catalog: kept for the very manifest that was measured, and shown for no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from meteora_registry.bundle.card_sections import EVALUATION, with_section, without_sections
from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.catalog_files import export_catalog, import_catalog
from meteora_registry.registry.workflows.evaluation_section import write_model_index, write_section
from meteora_registry.schemas.errors import InvalidDocument
from meteora_registry.schemas.evaluation import EvaluationSummary
from meteora_registry.schemas.names import CatalogSource
from support.catalogued import new_bundle
from support.evaluations import make_evaluation

TEAM = CatalogSource("team")
MANIFEST = new_bundle().facts.manifest_sha256
GOLDEN = Path(__file__).parents[1] / "golden" / "1" / "bundles"


def summary_of(items: int, *, right: int, own: int | None = None) -> EvaluationSummary:
    """Return what is kept of an evaluation in which the routing and the member answered so many rightly."""
    scores = {"routed": {"legal": [1.0] * right + [0.0] * (items - right)}}
    if own is not None:
        scores["member"] = {"legal": [1.0] * own + [0.0] * (items - own)}
    return EvaluationSummary.of(make_evaluation(scores))


def test_evaluation_is_kept_for_every_bundle_of_its_manifest_and_no_other(any_catalog: Catalog) -> None:
    summary = summary_of(4, right=3, own=4)
    assert any_catalog.record_evaluation(MANIFEST, summary) == ()
    any_catalog.register_bundle(new_bundle())
    any_catalog.register_bundle(new_bundle(name="copy"))
    any_catalog.register_bundle(new_bundle(content="2"))
    sources = any_catalog.record_evaluation(MANIFEST, summary)
    assert [str(each) for each in sources] == ["team@1", "copy@1"]
    found = any_catalog.find_bundle(CatalogSource("team", 1)).evaluation
    assert found is not None
    assert (found.items, found.of_members, found.summary) == (4, 0.75, summary)
    assert any_catalog.find_bundle(TEAM).evaluations == ()
    assert {each.name: each.of_members for each in any_catalog.list_latest().bundles} == {
        "copy": 0.75,
        "team": None,
    }
    assert any_catalog.history("team", limit=1).items[0].details == {"items": 4, "of_members": 0.75}
    assert database.find_problems(any_catalog._engine) == []


def test_largest_evaluation_counts_and_of_equal_ones_the_last(any_catalog: Catalog) -> None:
    any_catalog.register_bundle(new_bundle())
    for items, right, own in ((8, 4, 8), (8, 6, 8), (2, 2, 2), (9, 9, None)):
        any_catalog.record_evaluation(MANIFEST, summary_of(items, right=right, own=own))
    version = any_catalog.find_bundle(TEAM)
    assert [each.items for each in version.evaluations] == [8, 8, 2, 9]
    assert version.evaluation is not None
    (listed,) = any_catalog.list_latest().bundles
    assert version.evaluation.of_members == listed.of_members == 0.75


def test_nothing_is_compared_with_members_that_score_nothing() -> None:
    assert summary_of(2, right=2, own=0).of_members is None
    assert summary_of(2, right=2).of_members is None


def test_summary_has_no_answers(catalog: Catalog) -> None:
    catalog.register_bundle(new_bundle())
    catalog.record_evaluation(MANIFEST, summary_of(2, right=1, own=1))
    (found,) = catalog.find_evaluations(MANIFEST)
    assert "answers" not in found.summary.model_dump_json()


def test_evaluations_move_with_the_catalog(any_catalog: Catalog, tmp_path: Path) -> None:
    any_catalog.register_bundle(new_bundle())
    any_catalog.record_evaluation(MANIFEST, summary_of(2, right=1, own=2))
    path = tmp_path / "catalog.jsonl"
    export_catalog(any_catalog, path)
    with Catalog.open(Home(tmp_path / "new")) as other:
        import_catalog(other, path)
        assert other.find_evaluations(MANIFEST) == any_catalog.find_evaluations(MANIFEST)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        pytest.param(
            '"scope":"token"', '"scope":"nothing"', "`evaluation` breaks its schema: scope", id="schema"
        ),
        pytest.param(
            '"of_members":0.5,"s',
            '"of_members":2.0,"s',
            "states 2.0 of 2 items, its scores 0.5 of 2",
            id="share",
        ),
        pytest.param(
            '"items":2,"of', '"items":9,"of', "states 0.5 of 9 items, its scores 0.5 of 2", id="items"
        ),
    ],
)
def test_import_checks_evaluations(
    catalog: Catalog, tmp_path: Path, before: str, after: str, message: str
) -> None:
    catalog.register_bundle(new_bundle())
    catalog.record_evaluation(MANIFEST, summary_of(2, right=1, own=2))
    path = tmp_path / "catalog.jsonl"
    export_catalog(catalog, path)
    (evaluation,) = [line for line in path.read_text().splitlines() if '"table":"evaluations"' in line]
    assert before in evaluation
    path.write_text(path.read_text().replace(evaluation, evaluation.replace(before, after)))
    with (
        Catalog.open(Home(tmp_path / "new")) as other,
        pytest.raises(InvalidDocument, match=re.escape(message)),
    ):
        import_catalog(other, path)


def test_show_and_list_state_what_was_measured(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog.register_bundle(new_bundle())
    catalog.record_evaluation(MANIFEST, summary_of(2000, right=1490, own=1500))
    at = ["--home", str(home.folder)]
    assert run([*at, "show", "team"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"^evaluated here +99\.3 % of its members, 2,000 items, \d{4}-\d\d-\d\d$", shown, re.MULTILINE
    )
    assert "EVALUATED HERE" not in shown
    assert run([*at, "list"]) == 0
    assert "99.3 %" in capsys.readouterr().out
    catalog.record_evaluation(MANIFEST, summary_of(10, right=1))
    assert run([*at, "show", "team"]) == 0
    rows = capsys.readouterr().out.partition("EVALUATED HERE")[2].splitlines()[1:3]
    assert [row.split()[3:] for row in rows] == [
        ["2,000", "74.5", "%", "75.0", "%", "99.3", "%"],
        ["10", "10.0", "%", "-", "-"],
    ]
    assert run([*at, "show", "team", "--format", "json"]) == 0
    assert [each["items"] for each in json.loads(capsys.readouterr().out)["evaluations"]] == [2000, 10]


@pytest.mark.parametrize(
    "card", ["---\na: b\n---\n\n# Card\n", "# Card", "", "---\nopen", "---\r\na: b\r\n---\r\n"]
)
def test_evaluation_can_be_taken_out_of_a_card_again(card: str) -> None:
    def with_evaluation(card: bytes) -> bytes:
        return with_section(card, EVALUATION, "## Evaluation\n", front_matter="model-index: []\n")

    written = with_evaluation(card.encode())
    assert b"## Evaluation" in written
    assert with_evaluation(written) == written
    assert without_sections(written) == card.encode()
    assert without_sections(card.encode()) == card.encode()


def test_card_has_the_scores_where_the_hub_reads_them(catalog: Catalog) -> None:
    catalog.register_bundle(new_bundle())
    catalog.record_evaluation(MANIFEST, summary_of(4, right=3, own=4))
    (found,) = catalog.find_evaluations(MANIFEST)
    card = (GOLDEN / "arrow" / "README.md").read_bytes()
    front_matter = write_model_index(found.summary)
    written = with_section(card, EVALUATION, write_section(found), front_matter=front_matter).decode()
    (result,) = ModelCard(written).data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("legal", "exact_match", 0.75)
    assert "| `legal` | exact | 4 | 75.0 | 100.0 | `" in written
    assert "reaches 75.0 % of the score of its members" in written
    assert "To you that is a claim" in written
