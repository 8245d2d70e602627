"""From three LoRA adapters to one verified bundle that PEFT loads: the whole way.

Makes a tiny Llama from a seed, trains three PEFT adapters on it (different rank, scaling and
targets), and runs the real command line: add, list, fuse, verify. Then loads the bundle through PEFT
and compares the logits of every member, forced, with those of its own adapter alone.
Everything lands in ``demo-output/``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import meteora_registry.runtime as runtime

OUTPUT = Path(__file__).resolve().parent.parent / "demo-output"
BASE_NAME = "demo/tiny-llama"
VOCABULARY = 64
LENGTH = 24
TRAINING_STEPS = 200

# Three tasks over numbers, told apart by their step: each adapter learns to go on counting its way.
TASKS = {
    "count-by-one": (1, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])),
    "count-by-five": (5, LoraConfig(r=8, lora_alpha=4, use_rslora=True, target_modules="all-linear")),
    "count-down": (
        -1,
        LoraConfig(r=16, lora_alpha=8, target_modules=["gate_proj", "up_proj", "down_proj", "o_proj"]),
    ),
}


def main() -> None:
    """Run the demo; a failed step ends it with its error."""
    transformers.utils.logging.disable_progress_bar()
    # PEFT uses a deprecated part of transformers, which this demo cannot change.
    warnings.simplefilter("ignore", FutureWarning)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    torch.manual_seed(0)
    say(f"A tiny Llama from seed 0, saved as {OUTPUT.name}/base, and three PEFT adapters trained on it")
    tiny_llama().save_pretrained(OUTPUT / "base")
    for name in TASKS:
        first, last = train_adapter(name)
        print(f"  {name:14} loss {first:.2f} -> {last:.2f}")
    for name in TASKS:
        command("add", str(OUTPUT / name), "--base", BASE_NAME)
    command("list")
    command("fuse", *TASKS, "--out", str(OUTPUT / "bundle"), "--top-k", "2")
    command("verify", str(OUTPUT / "bundle"), "--level", "source")
    compare_members()


def tiny_llama() -> LlamaForCausalLM:
    """Return a Llama of two layers and 64 tokens, its weights drawn from the seed in force."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def sequences(step: int, count: int) -> Tensor:
    """Return ``count`` sequences that go up by ``step`` from random starts, int64 ``[count, LENGTH]``."""
    start = torch.randint(VOCABULARY, (count, 1))
    return (start + step * torch.arange(LENGTH)) % VOCABULARY


def train_adapter(name: str) -> tuple[float, float]:
    """Train one adapter, save it, and return the first and the last loss."""
    step, config = TASKS[name]
    model = get_peft_model(LlamaForCausalLM.from_pretrained(OUTPUT / "base"), config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    losses = []
    for _ in range(TRAINING_STEPS):
        batch = sequences(step, count=16)
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.save_pretrained(OUTPUT / name)
    return losses[0], losses[-1]


@torch.no_grad()
def compare_members() -> None:
    """Load the bundle with PEFT and compare every member, forced, with its adapter alone."""
    say("The bundle loaded by PeftModel.from_pretrained, each member forced, against its own adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", runtime.GateNotFittedWarning)
        routed = PeftModel.from_pretrained(fresh_base(), OUTPUT / "bundle")
    prompt = sequences(1, count=4)
    for name in TASKS:
        alone = PeftModel.from_pretrained(fresh_base(), OUTPUT / name)(prompt).logits
        with runtime.force_adapter(routed, name):
            forced = routed(prompt).logits
        error = ((forced - alone).abs().max() / alone.abs().max()).item()
        print(f"  {name:14} largest difference {error:.1e} of the largest logit")
        if not error <= 1e-5:
            sys.exit(f"error: `{name}` forced differs from its own adapter by {error:.1e}, expected 1e-5")
    print("\nAll three agree. The gate is not fitted yet: left to itself the bundle guesses.")


def fresh_base() -> LlamaForCausalLM:
    """Return the base again: PEFT changes the model that it is given."""
    return LlamaForCausalLM.from_pretrained(OUTPUT / "base")


def command(*arguments: str) -> None:
    """Run ``meteora-registry`` as a user would, in a catalog of the demo's own."""
    shown = [argument.replace(str(OUTPUT), OUTPUT.name) for argument in arguments]
    say("$ meteora-registry " + " ".join(shown))
    program = Path(sysconfig.get_path("scripts")) / "meteora-registry"
    # Neither a catalog nor a store of the user's own gets the adapters of a demonstration.
    own = {"METEORA_HOME": str(OUTPUT / "home"), "XDG_CONFIG_HOME": str(OUTPUT / "config")}
    environment = {**os.environ, **own, "METEORA_CATALOG": "", "METEORA_STORE": ""}
    subprocess.run([program, *arguments], check=True, env=environment)


def say(text: str) -> None:
    """Print a line after an empty one, flushed before a subprocess writes."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
