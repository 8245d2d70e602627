"""Bundles and catalogs that older versions wrote: verified, loaded, computed and upgraded as ever."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import meteora_registry.runtime as runtime
from meteora_registry.bundle import Bundle
from meteora_registry.files.digests import hash_file
from meteora_registry.fuser.bundle_reader import BundleTensors
from meteora_registry.fuser.extraction import extract_member
from meteora_registry.fuser.fuse_member import MemberFiles
from meteora_registry.fuser.refit import NewGates, refit_bundle
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime.base_modules import read_base, resolve_paths
from meteora_registry.schemas.bundle import CONFIG_FILE, EXPERTS_FOLDER, WEIGHTS_FILE
from meteora_registry.schemas.verification import Level, Outcome
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT
from support.program import Run

HERE = Path(__file__).parent
# Another processor rounds otherwise: whole models in float32 differ by up to 1.4e-5.
MAX_ERROR = 5e-5
SETS_WITH_CATALOGS = sorted(path.parent for path in HERE.glob("*/catalogs"))
BUNDLES = sorted(path.parent for path in HERE.glob(f"*/bundles/*/{CONFIG_FILE}"))
EXPECTED = sorted(HERE.glob("*/expected/*.safetensors"))
CATALOGS = sorted(HERE.glob("*/catalogs/*.db.gz"))
EXPORTS = sorted(HERE.glob("*/catalogs/*.jsonl"))


def label(path: Path) -> str:
    """Return the set and the name of a golden file."""
    return f"{path.relative_to(HERE).parts[0]}-{path.name.partition('.')[0]}"


each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=label)


def member_files(bundle: Path) -> dict[str, MemberFiles]:
    """Return the members' own files, kept beside the bundles."""
    folders = {name: bundle.parents[1] / "members" / name for name in Bundle.open(bundle).config.names}
    return {name: MemberFiles(path / CONFIG_FILE, path / WEIGHTS_FILE) for name, path in folders.items()}


def renaming(bundle: Path) -> dict[str, str]:
    """Return what the base that renamed its modules calls the old ones."""
    paths = {path for member in Bundle(bundle).manifest.members for path in member.renamed_modules}
    return resolve_paths(sorted(paths), read_base(bundle.parents[1] / "renaming-base")) if paths else {}


def test_golden_files_of_every_kind_are_there() -> None:
    configs = {path.name: Bundle.open(path).config for path in BUNDLES if path.parents[1].name == "1"}
    gates = [config.gate for config in configs.values()]
    assert {gate.scope for gate in gates} == {"token", "layer", "prompt", "prompt+token", "segment"}
    assert {gate.kind for gate in gates} == {"linear", "absolute", "normalised"}
    assert {gate.is_fitted for gate in gates} == {True, False}
    assert {str(Bundle.open(path).dtype) for path in BUNDLES} == {"F32", "BF16", "F16"}
    assert {1, 2, 3} == {len(config.members) for config in configs.values()}
    assert any(gate.sources for gate in gates)
    assert any(gate.abstain for gate in gates)
    assert any((path / EXPERTS_FOLDER).is_dir() for path in BUNDLES)
    assert {label(path) for path in CATALOGS} >= {"1-current", "1-first"}
    assert [label(path) for path in EXPORTS] == ["1-export"]


def test_golden_files_of_early_gates_of_every_kind_are_there() -> None:
    gates = [Bundle.open(path).config.gate for path in BUNDLES if path.parents[1].name == "2"]
    requests = [gate.request for gate in gates if gate.request is not None]
    # Where members have modules alone, and there and elsewhere.
    assert {request.observed is None for request in requests} == {True, False}
    assert any(request.observed and len(request.modules) > len(request.observed) for request in requests)
    assert all(request.template and request.quantiles and request.held_out for request in requests)
    assert {gate.scope for gate in gates if gate.request} == {"prompt", "prompt+token"}
    assert any(gate.evidence for gate in gates)


@each_bundle
def test_golden_bundle_passes_at_level_integrity(bundle: Path) -> None:
    record = verify_bundle(bundle, level=Level.INTEGRITY)
    assert (record.outcome, record.problems, record.unchecked) == (Outcome.PASS, (), ())


@each_bundle
def test_golden_bundle_passes_at_level_source(bundle: Path) -> None:
    record = verify_bundle(bundle, level=Level.SOURCE, sources=member_files(bundle), renamed=renaming(bundle))
    assert (record.outcome, record.problems, record.unchecked) == (Outcome.PASS, (), ())


@pytest.mark.parametrize("bundle", [path for path in BUNDLES if (path / EXPERTS_FOLDER).is_dir()], ids=label)
def test_golden_bundle_with_experts_agrees_with_them_and_is_not_its_own_witness(bundle: Path) -> None:
    record = verify_bundle(bundle, level=Level.SOURCE)
    assert (record.outcome, record.problems) == (Outcome.INCONCLUSIVE, ())


@LOADS_UNFITTED
@LOADS_WITH_PEFT
@pytest.mark.parametrize("stored", EXPECTED, ids=label)
def test_golden_bundle_computes_and_decides_what_it_did(stored: Path) -> None:
    expected, folder = load_file(stored), stored.parents[1]
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    # The outputs were written when factors in half precision computed in their own dtype.
    bundle = folder / "bundles" / stored.stem
    model = PeftModel.from_pretrained(base, bundle, autocast_adapter_dtype=False).eval()
    found, decisions = read_back(model, expected.pop("tokens"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            assert relative_error(found[name], tensor) <= MAX_ERROR, name
        else:
            assert torch.equal(found[name].long(), tensor.long()), name
    assert_decided(decisions, json.loads((stored.parent / "decisions.json").read_text())[stored.stem])


def read_back(
    model: PeftModel, tokens: torch.Tensor
) -> tuple[dict[str, torch.Tensor], list[runtime.Decision]]:
    """Return what the writer of the golden files kept, computed now."""
    with torch.no_grad():
        with runtime.routing(model) as record:
            found = {"routed": model(tokens).logits}
        for name in record.members:
            with runtime.force_adapter(model, name):
                found[f"forced.{name}"] = model(tokens).logits
        with runtime.routing(model) as answered:
            mask = torch.ones_like(tokens)
            options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
            found["answer"] = model.generate(tokens, attention_mask=mask, **options)
    for path, routing in record.modules.items():
        found[f"selection.{path}"], found[f"weights.{path}"] = routing.selection, routing.weights
        found[f"answer.selection.{path}"] = answered.modules[path].selection
    # Of what is known for every token of the prompts the last four were kept.
    kept = {name: value[:, -4:] if value.is_floating_point() else value for name, value in found.items()}
    return kept, [*record.decisions, *answered.decisions]


def assert_decided(found: list[runtime.Decision], expected: list[dict[str, Any]]) -> None:
    """Pass if these decisions were made, with these numbers as nearly as another machine may come."""
    for decision, stored in zip(found, expected, strict=True):
        for name, value in stored.items():
            now = getattr(decision, name)
            if name in ("weights", "confidence"):
                assert now == pytest.approx(value, rel=1e-4)
            else:
                assert now == (tuple(value) if isinstance(value, list) else value)


@each_bundle
def test_members_of_a_golden_bundle_come_out_as_they_went_in(bundle: Path, tmp_path: Path) -> None:
    for member in Bundle(bundle).manifest.members:
        folder = tmp_path / member.name
        extraction = extract_member(Bundle.open(bundle), member.name, folder)
        is_lossless = member.cast is None or member.cast.max_relative_error == 0
        assert extraction.identical == is_lossless
        assert hash_file(folder / CONFIG_FILE) == member.config_sha256
        if is_lossless:
            assert hash_file(folder / WEIGHTS_FILE) == member.weights_sha256


@pytest.mark.parametrize("bundle", [path for path in BUNDLES if Bundle.open(path).is_fitted], ids=label)
def test_golden_bundle_with_its_own_gates_again_has_the_same_weights(bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(bundle)
    (tmp_path / "again").mkdir()
    config = opened.config
    with BundleTensors(opened) as tensors:
        read = {path: tensors.read(path) for path in config.target_modules if config.has_gate(path)}
        values = {
            path: (module.gate, torch.zeros(0) if module.bias is None else module.bias)
            for path, module in read.items()
        }
        request = {
            path: tuple(tensors.read_request(path).values())
            for path in (config.gate.request.modules if config.gate.request else ())
        }
        new = NewGates(config.gate, config.top_k, config.temperature, values, request)
        manifest = refit_bundle(opened, new, tmp_path / "again")
    old = Bundle(bundle).manifest
    assert manifest.members == old.members
    assert manifest.files[WEIGHTS_FILE] == old.files[WEIGHTS_FILE]
    assert verify_bundle(tmp_path / "again", level=Level.INTEGRITY).outcome is Outcome.PASS


@pytest.fixture
def home(run: Run, tmp_path: Path) -> Path:
    """The home of the command line, which is empty."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def unpack(catalog: Path, home: Path) -> None:
    """Put a golden catalog into a home."""
    (home / "catalog.db").write_bytes(gzip.decompress(catalog.read_bytes()))


def shows(run: Run, command: str, *options: str) -> Any:
    """Return what a command that reads prints."""
    result = run(*options, *command.split(), "--format", "json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def assert_holds(found: Any, expected: Any, where: str) -> None:
    """Pass if everything expected is found; a later version may print more about a thing."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        for key, value in expected.items():
            assert key in found, f"{where}: {key}"
            assert_holds(found[key], value, f"{where}: {key}")
    elif isinstance(expected, list):
        assert isinstance(found, list), where
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_holds(one, other, f"{where}: {place}")
    else:
        assert found == expected, where


# Its rows were written by hand; every version that a command records has an event.
WITHOUT_EVENT = {"first.db.gz": ("legal@9", "team@2")}


@pytest.mark.parametrize("catalog", CATALOGS, ids=label)
def test_golden_catalog_is_upgraded_and_shows_the_same(catalog: Path, home: Path, run: Run) -> None:
    unpack(catalog, home)
    assert run("db", "upgrade").returncode == 0
    unexplained = WITHOUT_EVENT.get(catalog.name, ())
    checked = run("db", "check")
    assert checked.returncode == (1 if unexplained else 0)
    assert checked.stdout.splitlines() == [f"`{each}` has no event that added it" for each in unexplained]
    stored = json.loads((catalog.parent / catalog.name.replace(".db.gz", ".json")).read_text())
    for command, expected in stored.items():
        assert_holds(shows(run, command), expected, command)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("export", EXPORTS, ids=label)
def test_golden_export_is_imported_and_shows_the_same(
    export: Path, database: str, home: Path, run: Run, request: pytest.FixtureRequest
) -> None:
    options = ["--catalog", request.getfixturevalue("postgres_catalog_url")] * (database == "postgresql")
    assert run(*options, "db", "upgrade").returncode == 0
    imported = run(*options, "db", "import", str(export))
    assert imported.returncode == 0, imported.stderr
    assert run(*options, "db", "check").returncode == 0
    stored = json.loads((export.parent / "current.json").read_text())
    for command, expected in stored.items():
        found = shows(run, command, *options)
        if command.startswith("history"):
            assert found["events"].pop(0)["action"] == "import"
        assert_holds(found, expected, command)


@pytest.mark.parametrize("folder", SETS_WITH_CATALOGS, ids=lambda path: path.name)
def test_golden_catalog_takes_its_members_again_and_verifies_a_bundle(
    folder: Path, home: Path, run: Run, tmp_path: Path
) -> None:
    unpack(folder / "catalogs" / "current.db.gz", home)
    assert run("db", "upgrade").returncode == 0
    # The catalog knows their content, and the new store has none of it.
    names = Bundle.open(folder / "bundles" / "arrow").config.names
    added = run("add", *(str(folder / "members" / name) for name in names), "--format", "json")
    assert [each["created"] for each in json.loads(added.stdout)] == [False, False, False]
    shutil.copytree(folder / "bundles" / "arrow", tmp_path / "bundle")
    verified = run("verify", str(tmp_path / "bundle"), "--level", "source", "--format", "json")
    assert (verified.returncode, json.loads(verified.stdout)["outcome"]) == (0, "pass")
