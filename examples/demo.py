"""From three LoRA adapters to one model that picks the right one by itself: the whole way.

Makes a tiny Llama from a seed that repeats words, and three PEFT adapters of different rank, scaling and
targets that do something with them: French, digits, opposites. Then it runs the real command line (add, list,
fuse, gate fit, eval), asks the routed bundle questions without naming a member, and draws a picture.
Everything lands in ``demo-output/``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import torch
import transformers
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import meteora_registry as meteora
from meteora_registry.runtime import GateNotFittedWarning, force_adapter
from meteora_registry.runtime.tracing import trace
from meteora_registry.runtime.tracing.display import leading_members, token_shares

OUTPUT = Path(__file__).resolve().parent.parent / "demo-output"
BASE_NAME = "demo/tiny-llama"
LENGTH = 4
BASE_STEPS, ADAPTER_STEPS = 400, 120

# What the members know: a question has four words of one of these lists, and the answer is their partners.
PARTNERS = {
    "french": "red rouge green vert blue bleu black noir dog chien cat chat horse cheval house maison "
    "bread pain water eau milk lait book livre",
    "digits": "one 1 two 2 three 3 four 4 five 5 six 6 seven 7 eight 8 nine 9 ten 10 eleven 11 twelve 12",
    "opposite": "hot cold big small fast slow old new open closed light dark early late full empty hard soft "
    "high low rich poor wet dry",
}
WORDS = ["<unk>", "</s>", ":", *" ".join(PARTNERS.values()).split()]
END, COLON = 1, 2
UPPER_LAYERS = [2, 3]
ADAPTERS = {
    "french": LoraConfig(r=8, lora_alpha=16, target_modules=["up_proj", "down_proj"]),
    "digits": LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ),
    "opposite": LoraConfig(r=16, lora_alpha=16, target_modules=["v_proj", "o_proj", "up_proj", "down_proj"]),
}
MODES = {
    "base": "the base alone",
    "uniform": "uniform: all three at once, a third of each",
    "routed": "routed: the bundle decides",
    "member": "oracle: the right member is named",
}
QUESTIONS = ("red dog house bread :", "nine two twelve one :", "hot big rich wet :")
COLOURS = {"french": "#4c78a8", "digits": "#e0913a", "opposite": "#5a9e6f", "": "#c8c8c8"}


def main() -> None:
    """Run the demo; a failed step ends it with its error."""
    transformers.utils.logging.disable_progress_bar()
    # PEFT uses a deprecated part of transformers, which this demo cannot change.
    warnings.simplefilter("ignore", FutureWarning)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    torch.manual_seed(0)
    say("A tiny Llama that repeats four words, and three LoRA adapters that know more")
    make_base()
    for name in ADAPTERS:
        print(f"  {name:9} loss {train_adapter(name):.2f}", flush=True)
        write_questions(name)
    command("add", *(folder(name) for name in ADAPTERS))
    command("list")
    command("fuse", *ADAPTERS, "--out", folder("bundle"), "--top-k", "1", "--base-folder", folder("base"))
    command(
        *("gate", "fit", folder("bundle"), "--out", folder("routed"), "--base", folder("base")),
        *("--data", folder("fit"), "--abstain", "none"),
    )
    command(
        *("eval", "run", folder("routed"), "--base", folder("base"), "--data", folder("test")),
        *("--modes", ",".join(MODES), "--out", folder("scores.json")),
    )
    compare_members()
    show_what_it_does()


def make_base() -> None:
    """Train the base to repeat the words of a question, and save it with a tokenizer of whole words."""
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(
        OUTPUT / "base"
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=END,
        )
    )
    lists = torch.tensor([[WORDS.index(word) for word in words.split()] for words in PARTNERS.values()])
    for _ in training(model, BASE_STEPS, rate=3e-3):
        # Words of one list mostly come together, as the words of one subject do in any text.
        chosen = torch.randint(len(lists), (64, 1)).expand(64, LENGTH).clone()
        mixed = torch.rand(64) < 0.3
        chosen[mixed] = torch.randint(len(lists), (int(mixed.sum()), LENGTH))
        words = lists[chosen, torch.randint(lists.shape[1], chosen.shape)]
        batch = written(words, words)
        model(input_ids=batch, labels=batch).loss.backward()
    model.save_pretrained(OUTPUT / "base")


def train_adapter(name: str) -> float:
    """Train one adapter, save it, and return its last loss."""
    config = ADAPTERS[name]
    config.task_type, config.layers_to_transform = "CAUSAL_LM", UPPER_LAYERS
    model = get_peft_model(fresh_base(), config)
    loss = torch.zeros(())
    for _ in training(model, ADAPTER_STEPS, rate=1e-2):
        batch = questions(name, 64, held_out=False)
        labels = batch.clone()
        labels[:, : LENGTH + 1] = -100
        loss = model(input_ids=batch, labels=labels).loss
        loss.backward()
    config.base_model_name_or_path = BASE_NAME
    # The base is a folder here, so there is no vocabulary on the Hub to compare with.
    model.save_pretrained(OUTPUT / name, save_embedding_layers=False)
    return loss.item()


def training(model: torch.nn.Module, steps: int, *, rate: float) -> Iterator[int]:
    """Yield once for each step, in which the caller works out the gradients."""
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        yield step
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def questions(name: str, count: int, *, held_out: bool) -> Tensor:
    """Return ``count`` questions with their answers; those of the test are never trained or fitted on."""
    pairs = torch.tensor([WORDS.index(word) for word in PARTNERS[name].split()]).reshape(-1, 2)
    chosen = torch.randint(len(pairs), (count, LENGTH))
    # A quarter of all questions is for the test: those whose places in the list add up to a multiple of 4.
    rest = chosen.sum(dim=1) % 4
    chosen[:, -1] += (4 - rest) if held_out else (rest == 0)
    return written(*pairs[chosen % len(pairs)].unbind(-1))


def written(question: Tensor, answer: Tensor) -> Tensor:
    """Return the texts ``w w w w : a a a a </s>`` as ids."""
    marks = torch.tensor([COLON, END]).expand(len(question), 2)
    return torch.cat([question, marks[:, :1], answer, marks[:, 1:]], dim=1)


def write_questions(name: str) -> None:
    """Write 32 questions to fit the gates on and 32 others to ask, as ``gate fit`` and ``eval`` read them."""
    for purpose in ("fit", "test"):
        lines = []
        for row in questions(name, 32, held_out=purpose == "test").tolist():
            words = [WORDS[number] for number in row[:-1]]
            prompt, response = " ".join(words[: LENGTH + 1]), " " + " ".join(words[LENGTH + 1 :])
            lines.append(json.dumps({"prompt": prompt, "response": response}) + "\n")
        path = OUTPUT / purpose / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(lines))


@torch.no_grad()
def compare_members() -> None:
    """Load the bundle with PEFT alone and compare every member, forced, with its adapter."""
    say("PeftModel.from_pretrained loads the bundle; each member, forced, against its own adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GateNotFittedWarning)
        routed = PeftModel.from_pretrained(fresh_base(), OUTPUT / "bundle")
    for name in ADAPTERS:
        prompt = questions(name, 8, held_out=True)
        alone = PeftModel.from_pretrained(fresh_base(), OUTPUT / name)(prompt).logits
        with force_adapter(routed, name):
            forced = routed(prompt).logits
        error = ((forced - alone).abs().max() / alone.abs().max()).item()
        print(f"  {name:9} largest difference {error:.1e} of the largest logit")
        if not error <= 1e-5:
            sys.exit(f"error: `{name}` forced differs from its own adapter by {error:.1e}, expected 1e-5")


def show_what_it_does() -> None:
    """Ask the bundle without naming a member, and print and draw what it did beside the scores."""
    loaded = meteora.load(OUTPUT / "routed", str(OUTPUT / "base"))
    say("Three questions, and no member named. The bundle decides:\n")
    print(f"  {'QUESTION':24} {'ANSWER':26} SERVED BY")
    for question, answer in zip(QUESTIONS, loaded.answer(list(QUESTIONS), max_new_tokens=8), strict=True):
        print(f"  {question:24} {answer.text.strip():26} {answer.decisions[0].members[0]}")
    modes = json.loads((OUTPUT / "scores.json").read_text())["modes"]
    scores = {each["mode"]: 100 * each["score"] for each in modes}
    say("96 questions that neither adapters nor gates have seen, exactly right:\n")
    for mode, title in MODES.items():
        print(f"  {title:44} {scores[mode]:5.1f} %  {'█' * round(scores[mode] / 5)}".rstrip())
    draw(loaded, scores, OUTPUT / "demo.svg")
    say(f"The picture of this is {folder('demo.svg')}; the README goes on with what is in {OUTPUT.name}.")


def draw(loaded: meteora.LoadedBundle, scores: dict[str, float], path: Path) -> None:
    """Draw the scores, and the three questions with every token in the colour of its member."""
    mpl.rcParams.update({"svg.hashsalt": "demo", "svg.fonttype": "none", "font.size": 11})
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    bars, tokens = figure.subplots(2, 1, height_ratios=[4, 5])
    for row, (mode, title) in enumerate(MODES.items()):
        bars.barh(row, scores[mode], color="#3b3b3b" if mode == "routed" else "#b5b5b5", height=0.7)
        bars.text(scores[mode] + 1, row, f"{scores[mode]:.1f} %", va="center")
        bars.text(-1, row, title, va="center", ha="right")
    bars.set(xlim=(0, 108), ylim=(len(MODES) - 0.5, -0.5))
    bars.set_title("96 unseen questions answered exactly right", fontsize=11)
    bars.axis("off")
    tokens.set(xlim=(0, 2 * LENGTH + 3.2), ylim=(len(QUESTIONS) - 0.4, -0.6))
    tokens.set_title("who worked on each token (the last word is written and not read again)", fontsize=11)
    tokens.axis("off")
    for row, question in enumerate(QUESTIONS):
        draw_tokens(tokens, row, loaded, question)
    figure.savefig(path, metadata={"Date": None})


def draw_tokens(axes: Axes, row: int, loaded: meteora.LoadedBundle, question: str) -> None:
    """Draw one question and its answer; what was written last was never read, so it has no member."""
    found = trace(loaded, question, max_new_tokens=LENGTH, bundle="routed")
    shares = token_shares(found)
    for place, (token, leader) in enumerate(zip(found.tokens, leading_members(shares), strict=True)):
        name = loaded.config.names[leader] if 0 <= leader < len(ADAPTERS) else ""
        axes.barh(row, 0.94, left=place, color=COLOURS[name], height=0.6)
        axes.text(place + 0.47, row, token.text.strip(), ha="center", va="center", color="white")
    name = loaded.config.names[leading_members(shares)[0]]
    axes.text(len(found.tokens) + 0.2, row, name, va="center", color=COLOURS[name], weight="bold")


def fresh_base() -> LlamaForCausalLM:
    """Return the base again: PEFT changes the model that it is given."""
    return LlamaForCausalLM.from_pretrained(OUTPUT / "base")


def folder(name: str) -> str:
    """Return a path in the demo's folder as a user would type it, from the folder above."""
    return f"{OUTPUT.name}/{name}"


def command(*arguments: str) -> None:
    """Run ``meteora-registry`` as a user would, in a catalog of the demo's own."""
    say("$ meteora-registry " + " ".join(arguments))
    program = Path(sysconfig.get_path("scripts")) / "meteora-registry"
    # Neither a catalog nor a store of the user's own gets the adapters of a demonstration.
    own = {"METEORA_HOME": str(OUTPUT / "home"), "XDG_CONFIG_HOME": str(OUTPUT / "config")}
    environment = {**os.environ, **own, "METEORA_CATALOG": "", "METEORA_STORE": ""}
    subprocess.run([program, *arguments], check=True, env=environment, cwd=OUTPUT.parent)


def say(text: str) -> None:
    """Print a line after an empty one, flushed before a subprocess writes."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
