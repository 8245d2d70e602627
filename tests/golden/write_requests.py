"""Write the second set of golden files: gates of a few early layers that decide ahead.

    PYTHONSAFEPATH=1 PYTHONPATH=tests python tests/golden/write_requests.py /srv/golden
    cp -r /srv/golden tests/golden/2

As ``write.py``, of which the parts that read a bundle back are used. There are no catalogs: what they keep of
these bundles is no other than of the first set's.
"""

from __future__ import annotations

import shutil
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, LlamaForCausalLM

import meteora_registry as meteora
from golden.write import BASE, files_of, tiny_base, write_expected
from meteora_registry.bundle import Bundle
from meteora_registry.bundle.files import write_record
from meteora_registry.fuser.refit import NewGates, refit_bundle
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.registry.workflows.gate_fit import FitRequest
from meteora_registry.runtime.fitting import fit_gates, read_task_data
from meteora_registry.schemas.gate_choices import Scope
from meteora_registry.schemas.verification import Level, Outcome
from support.models import make_adapter
from support.task_data import TEMPLATE, tiny_tokenizer, write_task_data

# Each decision ahead of the gates of early layers, by members that have modules there or not.
EVERYWHERE: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}
# The first of these layers reads as early as request gates do, but not the second of them.
HERE_AND_THERE: dict[str, Any] = {"target_modules": ["v_proj"], "layers_to_transform": [1, 5]}
NAMES = ("low", "middle", "high")
BUNDLES: dict[str, tuple[str, Scope]] = {
    "request-prompt": ("everywhere", "prompt"),
    "request-prompt-token": ("everywhere", "prompt+token"),
    "observed-prompt": ("here-and-there", "prompt"),
    "observed-prompt-token": ("here-and-there", "prompt+token"),
    "evidence-segment": ("everywhere", "segment"),
}


def deep_base() -> LlamaForCausalLM:
    """Return the base of the first set with six layers, so that some are early ones."""
    return tiny_base(layers=6)


def write_members() -> None:
    """Write the base and the adapters of two bundles, which have the same names."""
    deep_base().save_pretrained("base")
    tiny_tokenizer(chat_template=TEMPLATE, pad_token="<unk>").save_pretrained("base")
    for kind, options in (("everywhere", EVERYWHERE), ("here-and-there", HERE_AND_THERE)):
        for seed, (name, rank) in enumerate(zip(NAMES, (4, 8, 3), strict=True), start=1):
            folder = Path("members", f"{name}-{kind}")
            make_adapter(deep_base, folder, seed=seed, base=BASE, r=rank, **options)
            (folder / "README.md").unlink()


def write_bundle(name: str) -> None:
    """Fuse and fit one bundle, whose request gates may have more bytes than so small factors allow."""
    kind, scope = BUNDLES[name]
    members = [f"{each}-{kind}" for each in NAMES]
    data = write_task_data(Path("data"), members, samples=50)
    tokenizer = tiny_tokenizer(chat_template=TEMPLATE, pad_token="<unk>")
    options = FitRequest("base", data, scope=scope).options
    folder = Path("bundles", name)
    folder.mkdir(parents=True)
    with meteora.fuse([Path("members", each) for each in members], base=BASE) as fused:
        gates = fit_gates(
            AutoModelForCausalLM.from_pretrained("base").eval(),
            tokenizer,
            fused.bundle.config,
            read_task_data(data, members, tokenizer=tokenizer, context_tokens=64),
            options=options,
        )
        request = {} if gates.requests is None else gates.requests.values
        config = fused.bundle.config
        new = NewGates(gates.describe(scope), config.top_k, config.temperature, gates.values, request)
        refit_bundle(fused.bundle, new, folder)
    record = verify_bundle(folder, level=Level.SOURCE, sources=files_of(members))
    assert record.outcome is Outcome.PASS, record
    write_record(folder, record)
    shutil.rmtree(data)


def check_kinds() -> None:
    """Pass if every kind of gate is there that the set was written for."""
    gates = {name: Bundle.open(Path("bundles", name)).config.gate for name in BUNDLES}
    assert gates["evidence-segment"].evidence
    for name in ("observed-prompt", "observed-prompt-token"):
        request = gates[name].request
        assert request is not None and request.observed is not None
        # Of both kinds: one in a module of the members, and one in a module that none touches.
        assert 0 < len(request.observed) < len(request.modules)
    for name in ("request-prompt", "request-prompt-token"):
        request = gates[name].request
        assert request is not None and request.observed is None


def write_all(folder: Path) -> None:
    """Write everything into a new folder."""
    folder.mkdir(parents=True)
    with chdir(folder):
        write_members()
        for name in BUNDLES:
            write_bundle(name)
        check_kinds()
        write_expected()


if __name__ == "__main__":
    write_all(Path(sys.argv[1]).resolve())
