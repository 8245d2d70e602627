"""A core install: the real program in processes where torch and its dependents are blocked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meteora_registry.bundle import Bundle
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.records import NewBundleVersion
from meteora_registry.registry.home import Home
from meteora_registry.schemas.verification import Level
from support.core_install import PREAMBLE, PROGRAM, CoreInstall, core_install
from support.evaluations import make_evaluation
from support.hub import TOKEN, LoopbackHub
from support.hub_server import serve
from support.small_adapters import make_adapter

Run = Callable[..., str]
BUNDLE = Path(__file__).parents[1] / "golden" / "1" / "bundles" / "fitted-prompt"


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def core() -> Iterator[CoreInstall]:
    with core_install() as core:
        yield core


@pytest.fixture
def run(core: CoreInstall, tmp_path: Path) -> Run:
    """The program with a home of its own; returns what it prints."""

    def run(*arguments: object, code: int = 0, **environment: str) -> str:
        variables = os.environ | {"METEORA_HOME": str(tmp_path / "home")} | environment
        done = core.run(PROGRAM, *map(str, arguments), env=variables)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_digests_of_a_bundle_can_be_checked(run: Run) -> None:
    assert "digests          agree" in run("verify", BUNDLE, "--digests-only")


def test_bundle_that_the_catalog_verified_can_be_pushed(run: Run, tmp_path: Path, hub: LoopbackHub) -> None:
    on_hub = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "",
    }
    refused = run("push", BUNDLE, "org/ours", code=1, **on_hub)
    assert "were never verified in this catalog, and computing with them needs torch" in refused
    assert "org/ours" not in hub.repositories
    # What `fuse` and `pull` record, on a machine that has torch and the same catalog.
    facts, record = Bundle.open(BUNDLE).facts, verify_bundle(BUNDLE, level=Level.INTEGRITY)
    with Catalog.open(Home(tmp_path / "home")) as catalog:
        catalog.register_bundle(NewBundleVersion("ours", BUNDLE, facts, (), record))
    assert "would push: org/ours" in run("push", BUNDLE, "org/ours", "--dry-run", **on_hub)
    assert "pushed: org/ours@" in run("push", BUNDLE, "org/ours", **on_hub)
    files = hub.repositories["org/ours"].head.files
    assert files["adapter_model.safetensors"].data == (BUNDLE / "adapter_model.safetensors").read_bytes()


def test_adapter_can_be_compared_with_bundles_here_and_on_the_hub(
    run: Run, tmp_path: Path, hub: LoopbackHub
) -> None:
    hub.create("org/shipped", BUNDLE)
    on_hub = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": ""}
    other = make_adapter(tmp_path / "other", base="org/elsewhere", targets=["up_proj"])
    for source in (BUNDLE, "org/shipped@main"):
        compared = ("validate", other, "--for", "fuse", "--with", source)
        assert "MR602 refuse: The adapters declare different bases" in run(*compared, code=1, **on_hub)
    assert not (tmp_path / "home").exists()


def test_fuse_can_be_planned(run: Run, tmp_path: Path) -> None:
    for seed, name in enumerate(("legal", "medical")):
        run("add", make_adapter(tmp_path / name, seed=seed), "--base", "org/base")
    shown = run("fuse", "legal", "medical", "--dry-run")
    assert "top k        2" in shown
    shown = run("fuse", "legal", "medical", "--out", tmp_path / "bundle", code=2)
    assert "fusing needs torch, which is not installed" in shown
    assert not (tmp_path / "bundle").exists()


def test_versions_of_adapters_and_bundles_can_be_compared(run: Run, tmp_path: Path) -> None:
    first, second = (make_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two")))
    assert "modules: 4 changed" in run("diff", first, second)
    assert "members: all 3 are the same" in run("diff", BUNDLE.parent / "normal", BUNDLE)


def test_evaluations_can_be_compared(run: Run, tmp_path: Path) -> None:
    for name, scores in (("before", [0.0, 1.0]), ("after", [1.0, 1.0])):
        evaluation = make_evaluation({"routed": {"one": scores}}, bundle=name)
        (tmp_path / f"{name}.json").write_bytes(evaluation.to_bytes())
    shown = run("eval", "compare", tmp_path / "before.json", tmp_path / "after.json")
    assert "the intervals need scipy, which is not installed" in shown
    assert "routed" in shown


def test_python_program_gets_the_catalog_and_is_refused_the_rest_in_words(
    core: CoreInstall, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "legal")
    script = f"""{PREAMBLE}
import meteora_registry as meteora

with meteora.Registry({str(tmp_path / "home")!r}) as registry:
    registry.add({str(adapter)!r}, base="org/base")
    assert [each.name for each in registry.search("legal").items] == ["legal"]
    assert registry.doctor() == meteora.Examination((), ())
    for refused in (
        lambda: registry.fuse(["legal"], {str(tmp_path / "bundle")!r}),
        lambda: registry.verify({str(BUNDLE)!r}),
        lambda: meteora.fuse([{str(adapter)!r}]),
        lambda: meteora.load({str(BUNDLE)!r}, "org/base"),
        lambda: meteora.Fusion,
    ):
        try:
            refused()
        except meteora.MissingDependency as error:
            print(error)
assert meteora.Bundle.open({str(BUNDLE)!r}).is_fitted
"""
    done = core.run(script, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "fusing needs torch, which is not installed",
        "verifying needs torch, which is not installed",
        "fusing needs torch, which is not installed",
        "loading a bundle needs `torch`, which is not installed",
        "`Fusion` needs `torch`, which is not installed",
    ]


def test_required_signer_names_the_extra_that_checks_signatures(run: Run, tmp_path: Path) -> None:
    key = tmp_path / "release.pub"
    key.write_text("never read")
    printed = run("verify", BUNDLE, "--digests-only", "--public-key", key, code=2)
    assert "signatures need the package model-signing, which is not installed" in printed
    assert 'in the source folder of meteora-registry: pip install ".[sign]"' in printed
    run("verify", BUNDLE, "--digests-only")
