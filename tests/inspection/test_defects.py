"""Every known defect, made from a good adapter, is found with its code and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.inspection.rules.all_rules import all_rules
from meteora_registry.schemas.errors import SourceUnreadable
from support.adapters import AdapterFiles, codes_of, inspect_written
from support.defects import DEFECTS, Defect
from support.models import make_adapter, tiny_llama


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> AdapterFiles:
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    folder = make_adapter(tiny_llama, tmp_path_factory.mktemp("good"), seed=1, base="org/base", **options)
    return AdapterFiles.read(folder)


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_defect_is_found_and_nothing_else(defect: Defect, good: AdapterFiles, tmp_path: Path) -> None:
    files = copy.deepcopy(good)
    defect.change(files)
    inspection = inspect_written(files, tmp_path)
    assert (str(inspection.verdict), codes_of(inspection)) == (defect.verdict, defect.codes)
    assert (inspection.inventory is not None) or not inspection.verdict.fusable


def test_link_is_not_followed_unless_asked_for(good: AdapterFiles, tmp_path: Path) -> None:
    real = good.write(tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (linked / name).symlink_to(real / name)
    with pytest.raises(SourceUnreadable, match="is a symbolic link, which is not followed") as caught:
        inspect_adapter(linked)
    assert "--follow-links" in (caught.value.hint or "")
    assert inspect_adapter(linked, follow_links=True) == inspect_adapter(real)


def test_all_findings_come_in_one_run(good: AdapterFiles, tmp_path: Path) -> None:
    files = copy.deepcopy(good)
    for name in ("alpha-missing", "nan", "a-alone", "base-null", "code-beside"):
        next(defect for defect in DEFECTS if defect.name == name).change(files)
    inspection = inspect_written(files, tmp_path)
    assert [finding.code for finding in inspection.findings] == ["MR008", "MR112", "MR141", "MR306", "MR401"]


def test_every_rule_about_an_adapter_is_proven() -> None:
    # In the tests of good adapters, of inspections, and of companions.
    elsewhere = {"MR015", "MR118", "MR136", "MR137", "MR411"}
    proven = {code for defect in DEFECTS for code in defect.codes} | elsewhere
    assert {rule.code for rule in all_rules() if rule.code < "MR500"} <= proven
