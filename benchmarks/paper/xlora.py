"""The cost of X-LoRA with these members, as PEFT runs it: whether it can be a row among the ways.

X-LoRA (arXiv 2402.07148) learns one small network that weighs all adapters at every token. PEFT computes
every adapter in every module of a pass, makes a pass of the base before each for the weights, and generates
without a cache of keys and values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from peft import PeftModel, XLoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.gates.base import load_tokenizer, native_name, native_type
from benchmarks.gates.training import IGNORED
from benchmarks.pages import Row

from .items import Item
from .training import MAX_SAMPLE_TOKENS, sample_of

ROWS_OF_A_BATCH = 8
NEW_TOKENS = 4
STEPS = 3


def xlora_row(
    base: Path, adapters: Mapping[str, Path], learned: Sequence[Item], asked: Sequence[Item]
) -> Row:
    """Return what a step of X-LoRA's training and a few tokens of its answers cost, in processor seconds.

    Args:
        base: its folder.
        adapters: the members' folders by task.
        learned: all that a training would read; the first few are the step that is measured.
        asked: the prompts that are answered, a batch of at most ``ROWS_OF_A_BATCH``.
    """
    tokenizer = load_tokenizer(base)
    samples = [sample_of(item, tokenizer) for item in learned]
    model = _model(base, adapters)
    first = samples[:ROWS_OF_A_BATCH]
    ids = _padded([sample.ids for sample in first], tokenizer.pad_token_id)
    labels = _padded([sample.labels for sample in first], IGNORED)
    attended = (torch.arange(ids.shape[1]) < torch.tensor([[len(each.ids)] for each in first])).long()

    def step() -> None:
        model(input_ids=ids, attention_mask=attended, labels=labels).loss.backward()

    model.train()
    step()  # The first one also fills the allocator.
    training = median(_processor_seconds(step) for _ in range(STEPS))
    prompts = tokenizer([item.prompt for item in asked[:ROWS_OF_A_BATCH]], padding=True, return_tensors="pt")
    model.eval()
    answering = _processor_seconds(
        lambda: model.generate(
            **prompts, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, do_sample=False
        )
    )
    return {
        "kind": "xlora",
        "element_type": native_name(),
        "adapters": len(adapters),
        "step_tokens": int(attended.sum()),
        "step_seconds": round(training, 2),
        "learned_tokens": sum(min(len(sample.ids), MAX_SAMPLE_TOKENS) for sample in samples),
        "prompts": len(prompts["input_ids"]),
        "prompt_tokens": int(prompts["attention_mask"].sum()),
        "new_tokens": len(prompts["input_ids"]) * NEW_TOKENS,
        "answer_seconds": round(answering, 2),
    }


def _model(base: Path, adapters: Mapping[str, Path]) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=native_type())
    model.config.use_cache = False  # PEFT refuses it otherwise.
    # PEFT finds the adapters by their places alone.
    folders = {str(place): str(folder) for place, folder in enumerate(adapters.values())}
    config = XLoraConfig(task_type="CAUSAL_LM", hidden_size=model.config.hidden_size, adapters=folders)
    return get_peft_model(model, config)


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


def _processor_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
