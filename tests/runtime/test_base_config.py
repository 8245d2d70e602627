"""A base whose config is broken, hostile, or of a model without an embedding of tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    ASTConfig,
    CLIPConfig,
    CLIPModel,
    PretrainedConfig,
    T5Config,
    ViTConfig,
    Wav2Vec2Config,
)

from meteora_registry.registry.cli.main import run
from meteora_registry.runtime.base_modules import module_shapes, read_base, vocabulary_of
from meteora_registry.schemas.errors import SourceUnreadable, UsageError
from support.models import tiny_llama
from support.small_adapters import make_adapter

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64} | SIZES
HINT = "name the folder that holds the base's `config.json`"


def write_config(folder: Path, value: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def small_clip() -> CLIPConfig:
    return CLIPConfig(
        text_config=SIZES | {"vocab_size": 64, "projection_dim": 16},
        vision_config=SIZES | {"image_size": 16, "patch_size": 8},
        projection_dim=16,
        architectures=["CLIPModel"],
    )


def other_bases() -> dict[str, tuple[PretrainedConfig, int | None]]:
    """Return bases that are not language models, and the rows of their embedding of tokens."""
    return {
        "two towers": (small_clip(), None),
        "images": (ViTConfig(**SIZES, image_size=16, architectures=["ViTForImageClassification"]), None),
        "sound": (ASTConfig(**SIZES, architectures=["ASTForAudioClassification"]), None),
        "speech": (Wav2Vec2Config(**SIZES, architectures=["Wav2Vec2ForCTC"]), None),
        "encoder and decoder": (
            T5Config(
                d_model=32,
                d_ff=48,
                num_layers=2,
                num_heads=4,
                vocab_size=64,
                architectures=["T5ForConditionalGeneration"],
            ),
            64,
        ),
        "no architecture, images": (ViTConfig(**SIZES, image_size=16), None),
        "no architecture, language": (tiny_llama().config, 64),
    }


@pytest.mark.parametrize("kind", list(other_bases()))
def test_base_of_any_kind_is_read(tmp_path: Path, kind: str) -> None:
    config, rows = other_bases()[kind]
    config.save_pretrained(tmp_path)
    base = read_base(tmp_path)
    assert module_shapes(base)
    assert vocabulary_of(base) == rows


def test_adapter_is_validated_against_a_base_without_an_embedding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_clip().save_pretrained(tmp_path / "clip")
    targets = ["text_model.encoder.layers.0.self_attn.q_proj"]
    with torch.device("meta"):
        assert targets[0] in dict(CLIPModel(small_clip()).named_modules())
    adapter = make_adapter(tmp_path / "adapter")
    assert run(["validate", str(adapter), "--base", str(tmp_path / "clip")]) == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "MR501" in printed.out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "`config.json` holds a list, expected an object"),
        ("3", "`config.json` holds a int, expected an object"),
        ("null", "`config.json` holds a NoneType, expected an object"),
        ("", "`config.json` is not JSON that can be read: "),
        ("[" * 200_000, "`config.json` is not JSON that can be read: maximum recursion depth"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "`config.json` is not JSON that can be read: maximum"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "`config.json` is not JSON that can be read: Exceeds"),
        (" " * (5 << 20), "`config.json` has more than 4194304 bytes"),
        ("{}", "Unrecognized model"),
        ('{"model_type": "nothing of the kind"}', "The checkpoint you are trying to load has model type"),
        ('{"model_type": 3}', ""),
        ('{"model_type": ["llama"]}', ""),
        ('{"model_type": "llama", "architectures": "LlamaForCausalLM"}', ""),
        ('{"model_type": "llama", "architectures": [3]}', ""),
        ('{"model_type": "llama", "hidden_size": 1e999}', ""),
    ],
    ids=[
        "list",
        "number",
        "null",
        "empty",
        "deep list",
        "deep object",
        "huge number",
        "huge file",
        "no type",
        "unknown type",
        "number as type",
        "list as type",
        "text as architectures",
        "number as architecture",
        "infinite size",
    ],
)
def test_config_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises((SourceUnreadable, UsageError)) as caught:
        read_base(write_config(tmp_path / "base", text))
    assert reason in str(caught.value)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"])
@pytest.mark.parametrize("value", ["x", -1, 0, 1e308, None, [], {}, True, 2.5, 10**12], ids=repr)
def test_wrong_number_in_a_config_is_refused_or_read(tmp_path: Path, key: str, value: Any) -> None:
    folder = write_config(tmp_path / "base", LLAMA | {key: value})
    try:
        read_base(folder)
    except SourceUnreadable as error:
        assert str(error).startswith(f"`{folder}` is not a base model: ")
        assert error.hint == HINT
    else:
        assert value in (0, -1, 10**12)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_hidden_layers": 10**9}, "its `num_hidden_layers` is 1e+09, expected at most 10000"),
        ({"num_labels": 10**9}, "its `num_labels` is 1e+09, expected at most 1000000"),
        ({"text_config": {"depths": [2, 10**6]}}, "its `depths` is 1e+06, expected at most 10000"),
        ({"max_position_embeddings": 10**9}, "its `max_position_embeddings` is 1e+09, expected at most"),
        ({"num_hidden_layers": 10**400}, "its `num_hidden_layers` is inf, expected at most 10000"),
    ],
    ids=["layers", "labels", "nested", "positions", "beyond a float"],
)
def test_config_that_asks_for_too_much_is_refused_before_anything_is_built(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    text = json.dumps(LLAMA | changes)
    with pytest.raises(SourceUnreadable) as caught:
        read_base(write_config(tmp_path / "base", text))
    assert reason in str(caught.value)


def test_model_of_more_modules_than_any_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_config(tmp_path / "base", LLAMA)
    modules = sum(1 for _ in read_base(folder).modules())
    monkeypatch.setattr("meteora_registry.runtime.base_model._MAX_MODULES", modules // 2)
    with pytest.raises(SourceUnreadable, match=f"has more than {modules // 2} modules"):
        read_base(folder)
    monkeypatch.undo()
    # What counted them is gone.
    assert module_shapes(read_base(folder))


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "dangling link", "loop", "device"])
def test_config_that_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.json"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "dangling link":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path)
        case "device":
            path.symlink_to("/dev/zero")
    with pytest.raises(SourceUnreadable, match="is not a base model: ") as caught:
        read_base(tmp_path)
    assert caught.value.hint == HINT


def test_config_behind_a_link_is_read_as_in_the_hubs_cache(tmp_path: Path) -> None:
    write_config(tmp_path / "blobs", LLAMA)
    (tmp_path / "config.json").symlink_to("blobs/config.json")
    assert module_shapes(read_base(tmp_path))


def test_infinity_in_a_config_is_taken(tmp_path: Path) -> None:
    text = json.dumps(LLAMA | {"time_step_limit": [0.0, float("inf")]})
    assert "Infinity" in text
    assert module_shapes(read_base(write_config(tmp_path / "base", text)))
