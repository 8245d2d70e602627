"""An inspection as its callers see it: its findings, its errors, and what it leaves alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from meteora_registry.files.digests import hash_file
from meteora_registry.inspection.adapter import Inspection, inspect_adapter, inspect_config, inspect_files
from meteora_registry.inspection.card import parse_license
from meteora_registry.inspection.config import LoraConfig
from meteora_registry.inspection.header import read_header
from meteora_registry.inspection.patterns import Budget
from meteora_registry.inspection.rules.rule import examine
from meteora_registry.inspection.tensors import Tensors, build_inventory
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.document import canonical_json, load_json
from meteora_registry.schemas.errors import AdapterRefused, SourceUnreadable
from meteora_registry.schemas.facts import AdapterFacts
from support import warm
from support.small_adapters import make_adapter


def test_inspection_tells_what_a_catalog_needs(tmp_path: Path) -> None:
    folder = make_adapter(
        tmp_path / "a",
        rank_pattern={"v_proj": 2},
        rslora=True,
        card="---\nlicense: mit\n---\n",
        revision="abc",
    )
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    found = inspect_adapter(folder)
    assert found.config_text == config.read_text()
    canonical = Digest.of_bytes(canonical_json(load_json(config.read_bytes(), what="config")))
    assert found.inventory is not None
    assert found.facts == AdapterFacts(
        weights_bytes=weights.stat().st_size,
        license="mit",
        max_rank=4,
        dtypes=("F32",),
        weights_sha256=hash_file(weights),
        config_sha256=hash_file(config),
        canonical_config_sha256=canonical,
        declared_base="org/base",
        base_revision="abc",
        task_type="CAUSAL_LM",
        peft_version="0.21.2",
        shape_signature=found.inventory.shape_signature,
        rank=4,
        scaling=8 / 4**0.5,
    )
    assert (found.canonical_config_sha256, found.weights_sha256) == (canonical, hash_file(weights))
    assert (found.declared_base, found.license) == ("org/base", "mit")
    assert {module.kind: (module.rank, module.scaling) for module in found.inventory.modules} == {
        "q_proj": (4, 8 / 2),
        "v_proj": (2, 8 / 2**0.5),
    }
    assert found.findings == ()


def test_two_files_of_any_name_are_the_same_adapter(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    config = (folder / "adapter_config.json").rename(tmp_path / "0123")
    weights = (folder / "adapter_model.safetensors").rename(tmp_path / "4567")
    moved = inspect_files(config, weights)
    assert moved.inventory == inspect_adapter(make_adapter(tmp_path / "b")).inventory
    assert moved.findings == ()


def test_without_a_scan_the_weights_are_not_read(tmp_path: Path) -> None:
    found = inspect_adapter(make_adapter(tmp_path / "a"), scan_weights=False)
    assert (found.weights_sha256, found.facts) == (None, None)
    assert found.inventory is not None


def test_sound_inspection_has_every_part(tmp_path: Path) -> None:
    found = inspect_adapter(make_adapter(tmp_path / "a"))
    sound = found.require_sound("unreachable")
    assert (sound.config_text, sound.header, sound.facts) == (found.config_text, found.header, found.facts)
    assert sound.require_factors("unreachable").inventory == found.inventory


@pytest.mark.parametrize(
    ("inspect", "changes", "codes"),
    [
        pytest.param(inspect_adapter, {"lora_alpha": "8"}, ["MR112"], id="broken"),
        pytest.param(partial(inspect_adapter, scan_weights=False), {}, [], id="header-only"),
        pytest.param(lambda folder: inspect_config(folder / "adapter_config.json"), {}, [], id="config-only"),
    ],
)
def test_require_sound_refuses(
    inspect: Callable[[Path], Inspection], changes: dict[str, object], codes: list[str], tmp_path: Path
) -> None:
    found = inspect(make_adapter(tmp_path / "a", **changes))
    with pytest.raises(AdapterRefused, match=r"^it cannot be used$") as caught:
        found.require_sound("it cannot be used")
    assert [finding.code for finding in caught.value.findings] == codes


def test_require_factors_refuses_another_method(tmp_path: Path) -> None:
    sound = inspect_adapter(make_adapter(tmp_path / "a", peft_type="LOHA")).require_sound("unreachable")
    with pytest.raises(AdapterRefused, match=r"^it has no factors$") as caught:
        sound.require_factors("it has no factors")
    assert caught.value.findings == sound.findings


def test_config_alone_says_what_it_can(tmp_path: Path) -> None:
    found = inspect_config(make_adapter(tmp_path / "a", lora_alpha="8") / "adapter_config.json")
    assert [finding.code for finding in found.findings] == ["MR112"]
    assert found.inventory is None


@pytest.mark.parametrize("inspect", [inspect_adapter, inspect_config])
def test_what_is_not_there_is_no_finding(inspect: Callable[[Path], Inspection], tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="cannot be read: No such file or directory"):
        inspect(tmp_path / "absent")


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceUnreadable, match="Not a directory"):
        inspect_adapter(tmp_path / "file")


def test_pipe_in_place_of_weights_does_not_block(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")
    found = inspect_adapter(folder)
    assert [(finding.code, finding.found) for finding in found.findings] == [
        ("MR002", "a pipe, socket or device")
    ]


def test_no_path_of_a_config_is_opened(tmp_path: Path) -> None:
    """The audit hook sees every file that the process opens."""
    secret = tmp_path / "secret"
    secret.mkdir()
    folder = make_adapter(
        tmp_path / "a", base=str(secret), corda_config={"cache_file": str(secret / "x")}, revision=str(secret)
    )
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from meteora_registry.inspection.adapter import inspect_adapter\nopened = []\n"
        "seen = ('open', 'os.scandir', 'os.listdir')\n"
        "sys.addaudithook(lambda name, args: name in seen and opened.append(str(args[0])))\n"
        f"inspect_adapter(Path({str(folder)!r}))\n"
        "print('\\n'.join(opened))"
    )
    result = warm.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert str(folder) in result.stdout
    assert str(secret) not in result.stdout


@pytest.mark.parametrize(
    ("card", "license_name"),
    [
        (b"---\nlicense: apache-2.0\n---\n# text", "apache-2.0"),
        (b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n", "mit"),
        (b"---\nlicense: [mit, gpl]\n---\n", "mit"),
        (b"---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        (b'---\nlicense: "mit\\e[31m"\n---\n', "mit\\x1b[31m"),
        (b"---\nlicense: mit\n", None),
        (b"# license: mit", None),
        (b"---\n- a\n---\n", None),
        (b"---\nlicense: {a: b}\n---\n", None),
        (b"---\na: &a [x]\nb: [*a, *a]\nlicense: mit\n---\n", None),
        (b"---\nlicense: !!python/object/apply:os.system [ls]\n---\n", None),
        (b"---\nlicense: !!bool foo\n---\n", None),
        (b"---\nlicense: mit\ndate: !!timestamp never\n---\n", None),
        (b"---\nlicense: mit\nsize: !!int ''\n---\n", None),
        (b"---\n" + b"[" * 5000 + b"\n---\n", None),
        (b"---\nd: 2024-99-99\nlicense: mit\n---\n", None),
        (b"", None),
    ],
)
def test_license_is_read_from_the_front_matter_alone(card: bytes, license_name: str | None) -> None:
    assert parse_license(card) == license_name


def test_config_among_very_many_files_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_adapter(tmp_path / "a")
    for number in range(30):
        (folder / f"log{number}").touch()
    monkeypatch.setattr("meteora_registry.inspection.folder.MAX_ENTRIES", 3)
    assert inspect_adapter(folder).findings == ()


def test_vocabulary_layers_count_from_the_config_only_without_tensors(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a", target_modules=["q_proj", "v_proj", "lm_head"])
    assert [each.code for each in inspect_adapter(folder).findings] == ["MR135"]
    assert [each.code for each in inspect_config(folder / "adapter_config.json").findings] == ["MR136"]


def test_patterns_that_cannot_be_matched_in_time_are_said_to_be_so(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    config = LoraConfig({"r": 4, "lora_alpha": 8, "alpha_pattern": {"q.*": 4}}, Budget(seconds=-1))
    tensors = Tensors.sort(read_header(folder / "adapter_model.safetensors"), config)
    assert [each.code for each in examine(tensors)] == ["MR118"]
    assert build_inventory(tensors) is None
