"""The consequences of reading the files of a damaged adapter."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError
from transformers.utils.hub import get_checkpoint_shard_files

from meteora_registry.inspection.adapter import inspect_adapter
from support.adapters import codes_of, inspect_written
from support.evidence import defective_files, good_files, load
from support.models import tiny_llama


@pytest.mark.rule("MR002")
def test_folder_in_place_of_the_weights_is_not_loaded(tmp_path: Path) -> None:
    folder = good_files().write(tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    weights.unlink()
    weights.mkdir()
    assert "MR002" in codes_of(inspect_adapter(folder))
    # Which of them depends on the file system.
    with pytest.raises((OSError, SafetensorError)):
        load(folder, tiny_llama())


class Payload:
    """A pickle of this runs what it likes."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)

    def __init__(self, path: Path) -> None:
        self.path = path


@pytest.mark.rule("MR004", "MR203")
def test_pickle_runs_what_it_carries(tmp_path: Path) -> None:
    """Reading the weights is running them."""
    data = pickle.dumps(Payload(tmp_path / "ran"))
    files = good_files()
    files.extra, files.absent = {"adapter_model.bin": data}, {"adapter_model.safetensors"}
    assert "MR004" in codes_of(inspect_written(files, tmp_path / "bin"))
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "bin" / "adapter_model.bin").read_bytes())
    assert (tmp_path / "ran").exists()


@pytest.mark.rule("MR006")
def test_index_leads_its_reader_out_of_the_folder(tmp_path: Path) -> None:
    """Transformers joins the names of an index to the folder, whatever they are."""
    index = '{"metadata": {}, "weight_map": {"a": "../secret"}}'
    folder = defective_files("index-outside").write(tmp_path)
    assert "MR006" in codes_of(inspect_adapter(folder))
    path = folder / "adapter_model.safetensors.index.json"
    path.write_text(index, encoding="utf-8")
    (files, _) = get_checkpoint_shard_files(str(folder), str(path))
    assert not Path(files[0]).resolve().is_relative_to(folder.resolve())


@pytest.mark.rule("MR118")
def test_hostile_pattern_hangs_the_engine_that_loaders_use(tmp_path: Path) -> None:
    pattern = "(([a-z_.0-9]+)+)+!"
    match = f"import re; re.fullmatch({pattern!r}, 'model.layers.0.self_attn.q_proj')"
    # The processor's time counts, not the clock's, so that a busy machine changes nothing.
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1)); {match}"
    assert subprocess.run([sys.executable, "-c", limited], check=False).returncode == -signal.SIGKILL
    hostile = good_files()
    hostile.config |= {"target_modules": pattern, "alpha_pattern": {pattern: 4}}
    assert codes_of(inspect_written(hostile, tmp_path)) == ["MR116", "MR117", "MR134"]
