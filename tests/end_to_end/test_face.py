"""The public face: a session with a catalog and one without, on tiny models with adapters that PEFT made."""

from __future__ import annotations

import ast
import gc
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import meteora_registry as meteora
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_llama_adapters
from support.task_data import save_text_base, write_task_data

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

NAMES = ("rank4", "rank8")
ERRORS = {
    *("AdapterRefused", "AlreadyInCatalog", "BundleRefused", "CatalogUnusable", "DataRefused", "FuseRefused"),
    *("HubConflict", "HubMismatch", "HubNotFound", "HubRefused", "HubUnavailable", "InvalidDocument"),
    *("MeteoraError", "MissingDependency", "NotInCatalog", "SourceUnreadable", "StillInUse", "StoreDamaged"),
    *("StoreUnavailable", "UsageError"),
}
PUBLIC = ERRORS | {
    *(
        "AdapterDifference",
        "AdapterQuery",
        "AdapterSummary",
        "AdapterVersion",
        "Addition",
        "Answer",
        "AnswerStream",
    ),
    *("Bundle", "BundleDifference", "BundleVersion"),
    *("CatalogSource", "Decision", "Evaluation", "EvaluationOptions", "EvaluationSummary", "Examination"),
    *("ChangedBundle", "Finding", "FusePlan", "MeasuredEvaluation", "Removal", "Removed", "Restored"),
    *("TrainingOptions", "TrainingOutcome", "TrashedVersion"),
    *(
        "FusedBundle",
        "Fusion",
        "GateAdoption",
        "GateFit",
        "GateNotFittedWarning",
        "Level",
        "LoadedBundle",
        "Mending",
        "Order",
    ),
    *(
        "Outcome",
        "Page",
        "Problem",
        "Pulled",
        "Pushed",
        "Recipe",
        "RecipeMember",
        "RecipeOptions",
        "Registry",
    ),
    *("RoutingRecord", "Severity", "SignedBy", "Signers", "SigningKey", "Verdict", "VerificationRecord"),
    *("force_adapter", "force_tokens", "fuse", "load"),
    *("route_as", "routing", "uniform"),
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, data, and adapters."""
    folder = tmp_path_factory.mktemp("face")
    save_text_base(folder / "base")
    write_task_data(folder / "data", NAMES)
    make_llama_adapters(folder / "adapters", base="org/base")
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[meteora.Registry]:
    """A registry with an empty home."""
    with meteora.Registry(home=str(tmp_path / "home")) as made:
        yield made


@pytest.mark.parametrize("path", [str, Path], ids=["text", "path"])
def test_session_with_a_catalog_takes_texts_and_paths(
    registry: meteora.Registry, workplace: Path, tmp_path: Path, path: type
) -> None:
    base, data = path(workplace / "base"), path(workplace / "data")
    for name in NAMES:
        assert registry.add(path(workplace / "adapters" / name), tags=["tiny"]).created
    assert registry.find("rank4@1").source == meteora.CatalogSource("rank4", 1)
    assert [each.name for each in registry.search().items] == list(NAMES)
    assert [each.name for each in registry.search("rank4").items] == ["rank4"]
    query = meteora.AdapterQuery(min_rank=8, tags=("tiny",))
    assert [each.name for each in registry.search(query).items] == ["rank8"]

    fusion = registry.fuse(NAMES, path(tmp_path / "bundle"), name="team", base=base, top_k=1)
    assert (fusion.version.top_k, fusion.version.source) == (1, meteora.CatalogSource("team", 1))
    record = registry.verify(path(fusion.folder), level="source")
    assert (record.level, record.outcome) == (meteora.Level.SOURCE, meteora.Outcome.PASS)
    found = registry.find("team")
    assert isinstance(found, meteora.BundleVersion)
    assert len(found.verifications) == 2

    fit = registry.fit("team", base=base, data=data, out=path(tmp_path / "fitted"))
    assert fit.version.source == meteora.CatalogSource("team", 2)
    options = meteora.EvaluationOptions(modes=("base", "routed"), limit=2, max_new_tokens=2)
    evaluation = registry.evaluate(fit.folder, base=base, data=data, options=options)
    assert [mode.mode for mode in evaluation.modes] == ["base", "routed"]
    assert evaluation.manifest_sha256 == fit.version.manifest_sha256
    assert registry.doctor(beside=[path(tmp_path)]) == meteora.Examination((), ())


def test_session_without_a_catalog_fuses_fits_verifies_saves_and_generates(
    workplace: Path, tmp_path: Path
) -> None:
    base = str(workplace / "base")
    folders = [str(workplace / "adapters" / "rank4"), workplace / "adapters" / "rank8"]
    with meteora.fuse(folders, base=base) as fused, fused.fit(workplace / "data") as fitted:
        assert not fused.bundle.is_fitted
        assert fitted.bundle.is_fitted
        assert fitted.record.outcome is meteora.Outcome.PASS
        assert fitted.verify().outcome is meteora.Outcome.PASS
        scratch = fitted.folder
        assert fitted.save(str(tmp_path / "bundle")) == tmp_path / "bundle" == fitted.folder
        assert not scratch.exists()
        from_handle = meteora.load(fitted, base).generate("w1 w2 w3", max_new_tokens=4)
    assert not fused.folder.exists()
    loaded = meteora.load(str(tmp_path / "bundle"), workplace / "base")
    assert loaded.generate("w1 w2 w3", max_new_tokens=4) == from_handle
    with loaded.force("rank8"), loaded.routing() as record:
        assert loaded.generate(["w1 w2 w3"], max_new_tokens=4) != [""]
    assert all((each.selection == 1).all() for each in record.modules.values())


def test_both_ways_of_fusing_write_the_same_bytes(
    registry: meteora.Registry, workplace: Path, tmp_path: Path
) -> None:
    for name in NAMES:
        registry.add(workplace / "adapters" / name)
    fusion = registry.fuse(NAMES, tmp_path / "bundle", temperature=0.5, dtype="bfloat16")
    fused = meteora.fuse([workplace / "adapters" / name for name in NAMES], temperature=0.5, dtype="bfloat16")
    with fused:
        assert fused.bundle.manifest_sha256 == fusion.version.manifest_sha256


def test_handle_that_is_dropped_leaves_nothing(workplace: Path) -> None:
    fused = meteora.fuse({"one": workplace / "adapters" / "rank4"})
    folder = fused.folder
    assert fused.bundle.config.names == ("one",)
    assert folder.is_dir()
    del fused
    gc.collect()
    assert not folder.parent.exists()


def test_fuse_refuses_what_is_not_a_list_of_adapters(workplace: Path, tmp_path: Path) -> None:
    adapter = workplace / "adapters" / "rank4"
    with pytest.raises(meteora.UsageError, match="is one adapter, expected a list of them"):
        meteora.fuse(str(adapter))
    with pytest.raises(meteora.UsageError, match="no adapters to fuse were named"):
        meteora.fuse([])
    with pytest.raises(meteora.UsageError, match="temperature"):
        meteora.fuse([adapter], temperature=-1.0)
    with pytest.raises(meteora.UsageError, match="member names must differ"):
        meteora.fuse([adapter, adapter])
    with pytest.raises(meteora.SourceUnreadable):
        meteora.fuse([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(meteora.AdapterRefused, match="is broken and cannot be fused"):
        meteora.fuse([tmp_path / "empty"])


def test_registry_refuses_in_words(registry: meteora.Registry, workplace: Path, tmp_path: Path) -> None:
    with pytest.raises(meteora.NotInCatalog):
        registry.find("legal")
    with pytest.raises(
        meteora.UsageError, match="the level is `deep`, expected one of `integrity`, `source`"
    ):
        meteora.fuse([workplace / "adapters" / "rank4"]).verify(level="deep")
    with pytest.raises(meteora.SourceUnreadable, match="rank4/x` cannot be read"):
        registry.add(workplace / "adapters" / "rank4", subfolder="x")
    with pytest.raises(meteora.InvalidDocument, match="is not a path inside a folder"):
        registry.add(workplace / "adapters" / "rank4", subfolder="../rank8")
    recipe = meteora.Recipe.state([{"adapter": "legal"}], {})
    with pytest.raises(meteora.UsageError, match="a recipe has its options in it, found also `top_k`"):
        registry.fuse(recipe, tmp_path / "x", top_k=1)
    with pytest.raises(meteora.UsageError, match="is one adapter, expected a list of names"):
        registry.fuse("legal", tmp_path / "x")


def test_public_names_are_these() -> None:
    assert set(meteora.__all__) == PUBLIC
    assert list(meteora.__all__) == sorted(meteora.__all__)
    assert set(meteora.__all__) <= set(dir(meteora))
    with pytest.raises(AttributeError, match="no attribute `other`"):
        _ = meteora.other  # type: ignore[attr-defined]


def test_type_checkers_and_programs_get_the_same_names() -> None:
    tree = ast.parse(Path(str(meteora.__file__)).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    stated = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = {name: (module, meteora._ALIASES.get(name, name)) for name, module in meteora._MODULES.items()}
    assert found == stated
    assert set(stated) == set(meteora.__all__)


@pytest.mark.parametrize("name", meteora.__all__)
def test_public_name_has_a_docstring_of_its_own(name: str) -> None:
    found = getattr(meteora, name)
    assert found.__doc__
    assert not found.__doc__.startswith(f"{name}("), "that is the signature which dataclass makes"
    if inspect.isclass(found):
        own = [each for key, each in vars(found).items() if not key.startswith("_")]
        assert all(each.__doc__ for each in own if inspect.isfunction(each) or isinstance(each, property))


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_public_error_is_caught_as_a_meteora_error(name: str) -> None:
    assert issubclass(getattr(meteora, name), meteora.MeteoraError)
