"""Requirements of a bundle before it is loaded, in each way of loading one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, AutoPeftModelForCausalLM, PeftConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from meteora_registry.bundle.files import write_record
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.runtime import load_bundle
from meteora_registry.schemas.bundle import CONFIG_FILE, MANIFEST_FILE, SIGNATURE_FILE, WEIGHTS_FILE
from meteora_registry.schemas.errors import BundleRefused, UsageError
from meteora_registry.schemas.signers import SigningKey
from meteora_registry.schemas.verification import Level
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT
from support.tampering import Tensors, change_config, change_tensors

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

GOLDEN = Path(__file__).parents[1] / "golden" / "1"
REFUSED = "is not intact: the factors of member"


def base() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "base")


def into_a_model_of_peft(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        # Nothing is required of the first, which is neither signed nor changed.
        patch.delenv("METEORA_REQUIRE", raising=False)
        model = PeftModel.from_pretrained(base(), GOLDEN / "bundles" / "arrow", adapter_name="first")
    return model.load_adapter(folder, adapter_name="second")


def into_a_model_of_transformers(folder: Path) -> object:
    return base().load_adapter(str(folder))


WAYS: dict[str, Callable[[Path], object]] = {
    "load_bundle": lambda folder: load_bundle(folder, GOLDEN / "base"),
    "PeftModel": lambda folder: PeftModel.from_pretrained(base(), folder),
    "a second bundle of a PeftModel": into_a_model_of_peft,
    "AutoPeftModel": AutoPeftModelForCausalLM.from_pretrained,
    "AutoModel": AutoModelForCausalLM.from_pretrained,
    "load_adapter": into_a_model_of_transformers,
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose base is at hand."""
    folder = shutil.copytree(GOLDEN / "bundles" / "arrow", tmp_path / "bundle")
    change_config(folder, lambda config: config.update(base_model_name_or_path=str(GOLDEN / "base")))
    (folder / "verification.json").unlink()
    return folder


@pytest.fixture
def poisoned(bundle: Path) -> Path:
    """The bundle with other factors, and a manifest that has its digest."""

    def change(tensors: Tensors) -> None:
        for name, found in tensors.items():
            if name.endswith("meteora_B"):
                found *= -5

    change_tensors(bundle, change)
    return bundle


@pytest.mark.parametrize("way", WAYS)
def test_intact_bundle_loads_where_that_is_required(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("METEORA_REQUIRE", "intact")
    WAYS[way](bundle)


@pytest.mark.parametrize("way", WAYS)
def test_bundle_that_is_not_intact_is_refused_where_that_is_required(
    poisoned: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "PeftModel":
        # Without the requirement nothing that is cheap to see is wrong with it.
        WAYS[way](poisoned)
    monkeypatch.setenv("METEORA_REQUIRE", "intact")
    with pytest.raises(BundleRefused, match=REFUSED):
        WAYS[way](poisoned)


def test_one_load_can_require_it(bundle: Path, poisoned: Path) -> None:
    with pytest.raises(BundleRefused, match=REFUSED):
        load_bundle(poisoned, GOLDEN / "base", verify="intact")


def test_folder_without_a_manifest_is_refused_only_where_something_is_required(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bundle / MANIFEST_FILE).unlink()
    load_bundle(bundle, GOLDEN / "base")
    monkeypatch.setenv("METEORA_REQUIRE", "intact")
    with pytest.raises(BundleRefused, match="cannot be shown to be intact: "):
        load_bundle(bundle, GOLDEN / "base")


def test_model_that_peft_saved_is_refused_in_words_where_something_is_required(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "saved"
    PeftModel.from_pretrained(base(), bundle).save_pretrained(saved)
    PeftModel.from_pretrained(base(), saved)
    monkeypatch.setenv("METEORA_REQUIRE", "intact")
    with pytest.raises(BundleRefused, match="is a routed model that PEFT saved, and not a bundle yet"):
        PeftModel.from_pretrained(base(), saved)


def test_tensors_that_come_without_their_folder_are_refused_where_something_is_required(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Any = PeftConfig.from_pretrained(bundle)
    model = PeftModel.from_pretrained(base(), bundle)
    monkeypatch.setenv("METEORA_REQUIRE", "intact")
    with pytest.raises(BundleRefused, match="these tensors do not come with a bundle's folder"):
        PeftModel.from_pretrained(base(), bundle, config=config)
    with pytest.raises(BundleRefused, match="these tensors do not come with a bundle's folder"):
        base().load_adapter(peft_config=config, adapter_state_dict=load_file(bundle / WEIGHTS_FILE))
    # Its own folder was read before anything was required of it.
    set_peft_model_state_dict(model, load_file(bundle / WEIGHTS_FILE))


@pytest.fixture
def signed(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle with a record, signed by a signer that this process accepts and requires."""
    pytest.importorskip("model_signing", reason="the extra `sign` is not installed")
    from meteora_registry.bundle.signing import sign_bundle
    from support.signing import make_key

    write_record(bundle, verify_bundle(bundle, level=Level.INTEGRITY))
    key = make_key(tmp_path / "keys", "release")
    sign_bundle(bundle, SigningKey(key.private))
    signers = tmp_path / "signers.toml"
    signers.write_text('meteora_signers = 1\n[[key]]\npublic_key = "keys/release.pub"\n')
    monkeypatch.setenv("METEORA_SIGNERS", str(signers))
    monkeypatch.setenv("METEORA_REQUIRE", "signed")
    return bundle


@pytest.mark.parametrize("way", WAYS)
def test_signed_bundle_loads_where_that_is_required(signed: Path, way: str) -> None:
    WAYS[way](signed)


@pytest.mark.parametrize("way", WAYS)
def test_unsigned_bundle_is_refused_where_a_signature_is_required(signed: Path, way: str) -> None:
    (signed / SIGNATURE_FILE).unlink()
    with pytest.raises(BundleRefused, match="is not signed"):
        WAYS[way](signed)


def test_one_load_can_require_a_signature(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METEORA_REQUIRE")
    load_bundle(signed, GOLDEN / "base", verify="signed")
    (signed / SIGNATURE_FILE).unlink()
    load_bundle(signed, GOLDEN / "base")
    with pytest.raises(BundleRefused, match="is not signed"):
        load_bundle(signed, GOLDEN / "base", verify="signed")


def test_signed_bundle_with_other_weights_is_refused(signed: Path) -> None:
    """The manifest is as it was signed, and the weights are not those that it lists."""
    path = signed / WEIGHTS_FILE
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith("meteora_B"))
    tensors[name] *= -5
    save_file(tensors, path, metadata={"format": "pt", "meteora_format": "1"})
    with pytest.raises(BundleRefused, match=f"is not intact: `{WEIGHTS_FILE}` has digest"):
        load_bundle(signed, GOLDEN / "base")


def test_required_signature_needs_accepted_signers(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METEORA_SIGNERS")
    with pytest.raises(UsageError, match="METEORA_SIGNERS names no file of accepted signers"):
        load_bundle(signed, GOLDEN / "base")


@pytest.mark.parametrize("text", ["Intact", "yes", "0", "source"])
def test_unknown_requirement_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    with pytest.raises(UsageError, match=f"`verify` is `{text}`, expected `intact` or `signed`"):
        load_bundle(bundle, GOLDEN / "base", verify=text)
    monkeypatch.setenv("METEORA_REQUIRE", text)
    with pytest.raises(UsageError, match=f"METEORA_REQUIRE is `{text}`, expected `intact` or `signed`"):
        PeftModel.from_pretrained(base(), bundle)


def state_a_key_twice(folder: Path) -> None:
    path = folder / CONFIG_FILE
    path.write_text(path.read_text().replace('"top_k": ', '"top_k": 1, "top_k": ', 1))


def state_another_format(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    save_file(load_file(path), path, metadata={"format": "pt", "meteora_format": "2"})


def put_infinity_into_a_gate(folder: Path) -> None:
    def change(tensors: Tensors) -> None:
        name = next(name for name in sorted(tensors) if name.endswith("meteora_gate"))
        tensors[name][-1, -1] = torch.inf

    change_tensors(folder, change)


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (state_a_key_twice, "the key `top_k` is in one object twice"),
        (state_another_format, "has meteora_format `2` in its metadata"),
        (put_infinity_into_a_gate, "has values that are not finite"),
    ],
    ids=["key twice", "another format", "gate not finite"],
)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_cheap_to_see_is_refused_in_every_way(
    bundle: Path, forge: Callable[[Path], None], message: str, way: str
) -> None:
    forge(bundle)
    with pytest.raises(ValueError, match=message):
        WAYS[way](bundle)


def test_weights_without_a_format_load(bundle: Path) -> None:
    # As a training run saves them.
    path = bundle / WEIGHTS_FILE
    save_file(load_file(path), path, metadata={"format": "pt"})
    PeftModel.from_pretrained(base(), bundle)


def test_library_outside_transformers_is_not_imported_for_a_bundle(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text("class Model: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    mapping = {"base_model_class": "Model", "parent_library": "stranger"}
    change_config(bundle, lambda config: config.update(task_type=None, auto_mapping=mapping))
    with pytest.raises(ValueError, match="stranger"):
        AutoPeftModel.from_pretrained(bundle)
    assert "stranger" not in sys.modules
