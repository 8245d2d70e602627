"""Write a set of golden files: bundles, catalogs and an export, with what the code that wrote them read back.

    PYTHONSAFEPATH=1 PYTHONPATH=tests python tests/golden/write.py /srv/golden
    cp -r /srv/golden tests/golden/NEW

Golden files are never rewritten. A new format, or a new feature of one, gets a new folder beside the old
ones, written by the code that introduced it; the test reads every folder. The catalog keeps the absolute
paths of its bundles, so the folder is one whose name reveals nothing of the machine.

Everything comes from seeds. A second run gives the same bytes but for times and versions: in
``verification.json``, in the catalogs and in what they list.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig

import meteora_registry.runtime as runtime
from meteora_registry.bundle import Bundle
from meteora_registry.bundle.files import write_record
from meteora_registry.fuser.bundle_reader import BundleTensors
from meteora_registry.fuser.fuse_member import MemberFiles
from meteora_registry.fuser.refit import NewGates, refit_bundle
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.registry.catalog.engine import engine_for, sqlite_url
from meteora_registry.registry.cli import main
from meteora_registry.schemas.bundle import CONFIG_FILE, VERIFICATION_FILE, WEIGHTS_FILE
from meteora_registry.schemas.gate_choices import Scope
from meteora_registry.schemas.verification import Level, Outcome
from support import first_catalog
from support.models import VOCABULARY, make_adapter
from support.task_data import tiny_tokenizer, write_task_data

BASE = "org/base"
SCOPES: tuple[Scope, ...] = ("token", "layer", "prompt", "prompt+token", "segment")
MEMBERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "stabilised": {
        "r": 8,
        "lora_alpha": 4,
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    },
    "patterned": {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"down_proj": 5, "layers.1.self_attn.q_proj": 9},
        "alpha_pattern": {"down_proj": 7},
        "layers_to_transform": [1],
    },
}
# Between the confidences of the two prompts, so that one is answered by the base and one is not.
THRESHOLDS = {"prompt": 0.35, "prompt-token": 0.32, "segment": 0.34}
# The logits of the last tokens depend on all that come before, and the others would only take space.
KEPT_LOGITS = 4
ANSWER_TOKENS = 3


def tiny_base(*, layers: int = 2) -> LlamaForCausalLM:
    """Return a Llama of a few layers; the weights of two take 26 kB, those of six 60 kB."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def run(*words: str) -> str:
    """Run a command in this process and return what it printed on stdout."""
    with redirect_stdout(io.StringIO()) as printed:
        code = main.run([*words])
    if code != 0:
        raise RuntimeError(f"{' '.join(words)} ended with exit code {code}")
    return printed.getvalue()


def write_members() -> None:
    """Write a base, its adapters, and an adapter under old module names with the base that renamed them."""
    tiny_base().save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    for seed, (name, options) in enumerate(MEMBERS.items(), start=1):
        make_adapter(tiny_base, Path("members", name), seed=seed, base=BASE, **options)
        if name != "stabilised":
            folder = Path("members", f"{name}-bfloat16")
            make_adapter(tiny_base, folder, seed=seed + 10, base=BASE, dtype=torch.bfloat16, **options)
    for card in Path("members").rglob("README.md"):
        card.unlink()
    write_old_names(Path("members", "old-names"))
    layers = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlavaConfig(
        text_config=LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, **layers),
        vision_config=CLIPVisionConfig(image_size=32, patch_size=16, **layers),
        architectures=["LlavaForConditionalGeneration"],
    ).save_pretrained("renaming-base")


def write_old_names(folder: Path) -> None:
    """Write the adapter `plain` with the module paths that transformers 4 gave to a Llava."""
    shutil.copytree(Path("members", "plain"), folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    start, old = "base_model.model.model.", "base_model.model.language_model.model."
    renamed = {name.replace(start, old): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / WEIGHTS_FILE, {"format": "pt"})
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"base_model_name_or_path": "org/llava"}))


def write_bundles() -> None:
    """Write a bundle of each kind through the commands, and those that no command makes through the fuser."""
    run("add", "members/plain", "--tag", "trusted", "--tag", "first")
    run("add", *(str(path) for path in sorted(Path("members").iterdir()) if path.name != "plain"))
    fuse = partial(run, "fuse", *MEMBERS)
    fuse("--out", "bundles/arrow")
    fuse("--out", "bundles/normal", "--gate", "normal", "--seed", "7", "--top-k", "1", "--temperature", "0.5")
    fuse("--out", "bundles/experts", "--with-experts")
    fuse("--out", "bundles/cast-bfloat16", "--dtype", "bfloat16")
    fuse("--out", "bundles/cast-float16", "--dtype", "float16")
    run("fuse", "plain-bfloat16", "patterned-bfloat16", "--out", "bundles/bfloat16")
    run("fuse", "stabilised", "--out", "bundles/one-member")
    run("fuse", "old-names", "--base", "renaming-base", "--out", "bundles/renamed")
    import_official()
    for scope in SCOPES:
        fit("arrow", f"fitted-{scope.replace('+', '-')}", "--scope", scope)
    fit("bfloat16", "fitted-bfloat16")
    fit("experts", "fitted-experts", "--scope", "token")
    for scope, threshold in THRESHOLDS.items():
        write_abstaining(Path("bundles", f"fitted-{scope}"), Path("bundles", f"abstain-{scope}"), threshold)


def import_official() -> None:
    """Write a bundle whose linear gate came from the MeteoRA authors' layout."""
    run("export", "bundles/normal", "--layout", "official", "--out", "official")
    ranks = {"plain": (4, 8), "stabilised": (8, 4), "patterned": (9, 6)}
    members = [f"--member={name}-imported:{rank}:{alpha}" for name, (rank, alpha) in ranks.items()]
    weights = ("official/moe_lora.safetensors", "--layout", "official")
    run("import", *weights, *members, "--base", BASE, "--out", "bundles/imported")
    for name in ranks:
        target = Path("members", f"{name}-imported")
        run("extract", "bundles/imported", target.name, "--out", str(target))
    shutil.rmtree("official")


def fit(bundle: str, out: str, *options: str) -> None:
    """Fit the gates of a bundle on data of its members."""
    data = write_task_data(Path("data"), Bundle.open(Path("bundles", bundle)).config.names, samples=32)
    read = (f"bundles/{bundle}", "--base", "base", "--data", "data")
    run("gate", "fit", *read, "--out", f"bundles/{out}", *options)
    shutil.rmtree(data)


def write_abstaining(fitted: Path, folder: Path, threshold: float) -> None:
    """Write a fitted bundle with a threshold, which no command sets."""
    bundle = Bundle.open(fitted)
    with BundleTensors(bundle) as tensors:
        values = {
            path: (module.gate, module.bias)
            for path in bundle.config.target_modules
            if bundle.config.has_gate(path)
            for module in (tensors.read(path),)
            if module.bias is not None
        }
    gate = bundle.config.gate.model_copy(update={"abstain": threshold})
    folder.mkdir()
    refit_bundle(bundle, NewGates(gate, bundle.config.top_k, bundle.config.temperature, values), folder)
    record = verify_bundle(folder, level=Level.SOURCE, sources=files_of(bundle.config.names))
    assert record.outcome is Outcome.PASS, record
    write_record(folder, record)


def files_of(members: Sequence[str]) -> dict[str, MemberFiles]:
    """Return where each member's own files are."""
    folders = {name: Path("members", name) for name in members}
    return {name: MemberFiles(path / CONFIG_FILE, path / WEIGHTS_FILE) for name, path in folders.items()}


def write_expected() -> None:
    """Write what each bundle computes: every member forced, routed, and an answer; and what was decided."""
    Path("expected").mkdir()
    tokens, decisions = some_prompts(), {}
    for folder in sorted(Path("bundles").iterdir()):
        if folder.name == "renamed":
            continue
        found, decisions[folder.name] = compute(folder, tokens)
        # A choice that hangs on the last bits would come out differently on another machine.
        shaken, decided = compute(folder, tokens, noise=1e-5)
        assert [served(each) for each in decided] == [served(each) for each in decisions[folder.name]]
        for name, tensor in found.items():
            assert tensor.is_floating_point() or torch.equal(tensor, shaken[name]), (folder, name)
        save_file({"tokens": tokens, **found}, Path("expected", f"{folder.name}.safetensors"))
    Path("expected", "decisions.json").write_text(json.dumps(decisions, indent=1) + "\n")


def some_prompts() -> Tensor:
    """Return two prompts [2, 12]: words like the first and then the last member's data, and the second's."""
    generator = torch.Generator().manual_seed(5)
    thirds = [torch.randint(start, start + 20, (12,), generator=generator) for start in (4, 24, 44)]
    return torch.stack([torch.cat([thirds[0][:6], thirds[2][6:]]), thirds[1]])


def served(decision: Mapping[str, Any]) -> dict[str, Any]:
    """Return a decision without its numbers."""
    return {key: value for key, value in decision.items() if key not in ("confidence", "weights")}


def compute(
    folder: Path, tokens: Tensor, *, noise: float = 0.0
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the tensors and decisions of one bundle, on a base whose weights are changed by this much."""
    base = AutoModelForCausalLM.from_pretrained("base").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(1 + noise * torch.randn_like(parameter))
    return read_back(PeftModel.from_pretrained(base, folder).eval(), tokens)


def read_back(model: PeftModel, tokens: Tensor) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return what a loaded bundle computes for prompts [B, T], and its decisions."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        with runtime.routing(model) as record:
            found["routed"] = model(tokens).logits[:, -KEPT_LOGITS:]
        for name in record.members:
            with runtime.force_adapter(model, name):
                found[f"forced.{name}"] = model(tokens).logits[:, -KEPT_LOGITS:]
        with runtime.routing(model) as answered:
            options = {"max_new_tokens": ANSWER_TOKENS, "do_sample": False, "pad_token_id": 0}
            found["answer"] = model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    for path, routing in record.modules.items():
        found[f"selection.{path}"] = routing.selection.to(torch.int8)
        found[f"weights.{path}"] = routing.weights[:, -KEPT_LOGITS:]
        found[f"answer.selection.{path}"] = answered.modules[path].selection.to(torch.int8)
    decided = [asdict(each) for each in (*record.decisions, *answered.decisions)]
    return {name: tensor.contiguous() for name, tensor in found.items()}, json.loads(json.dumps(decided))


def write_catalogs() -> None:
    """Write a catalog with something in every table, the same as an export, and one of the first revision."""
    run("add", "members/plain-bfloat16", "--name", "plain", "--base", "Org/Base")
    run("alias", "plain@1", "champion")
    run("tag", "arrow", "shipped")
    run("tag", "plain@2", "candidate")
    run("tag", "plain@2", "candidate", "--remove")
    run("verify", "bundles/arrow", "--level", "source", "--record")
    run("add", "members/plain-imported", "--name", "gone")
    run("remove", "gone", "--yes")
    run("remove", "cast-float16", "--yes")
    run("db", "export", "export.jsonl")
    Path("catalogs").mkdir()
    shutil.move("export.jsonl", "catalogs/export.jsonl")
    shutil.copyfile("home/catalog.db", "catalogs/current.db")
    write_first_catalog(Path("catalogs", "first.db"))
    for name in ("current", "first"):
        shown = show_all(Path("catalogs", f"{name}.db"))
        Path("catalogs", f"{name}.json").write_text(json.dumps(shown, ensure_ascii=False) + "\n")
        pack(Path("catalogs", f"{name}.db"))


def pack(path: Path) -> None:
    """Compress a database, most of whose pages are nearly empty."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()


def write_first_catalog(path: Path) -> None:
    """Write a catalog of the first revision with awkward rows, but findings and a record that can be read."""
    record = Path("bundles", "arrow", VERIFICATION_FILE).read_text()
    rows = {
        **first_catalog.ROWS,
        "adapter_versions": [row | {"findings": []} for row in first_catalog.ROWS["adapter_versions"]],
        "verifications": [row | {"record": record} for row in first_catalog.ROWS["verifications"]],
    }
    first_catalog.migrate(sqlite_url(path), "0001")
    with engine_for(sqlite_url(path)) as engine:
        first_catalog.fill(engine, rows)


def show_all(catalog: Path) -> dict[str, Any]:
    """Return what the commands that read print of a catalog, of which a copy is upgraded and read."""
    home = Path("reading")
    home.mkdir()
    shutil.copyfile(catalog, home / "catalog.db")
    read = partial(run, "--home", str(home))
    run("--home", str(home), "db", "upgrade")
    listed = json.loads(read("list", "--format", "json"))
    names = [entry["name"] for kind in ("adapters", "bundles") for entry in listed[kind]]
    versions = {name: json.loads(read("show", name, "--format", "json"))["versions"] for name in names}
    commands = [("list",), ("history", "--limit", "1000"), ("search", "--all-versions")]
    commands += [("show", f"{name}@{number}") for name in names for number in versions[name]]
    shown = {" ".join(words): json.loads(read(*words, "--format", "json")) for words in commands}
    shutil.rmtree(home)
    return shown


def write_all(folder: Path) -> None:
    """Write everything into a new folder."""
    folder.mkdir(parents=True)
    os.environ |= {"METEORA_HOME": str(folder / "home"), "METEORA_ACTOR": "writer"}
    for variable in ("METEORA_CATALOG", "METEORA_STORE"):
        os.environ.pop(variable, None)
    with chdir(folder):
        write_members()
        Path("bundles").mkdir()
        write_bundles()
        write_expected()
        write_catalogs()
        shutil.rmtree("home")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]).resolve())
