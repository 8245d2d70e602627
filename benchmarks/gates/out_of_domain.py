"""Prompts that no member was made for: what a router does with them, with and without a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from meteora_registry.runtime import route_as, routing

from .prompts import ARROW

NEW_TOKENS = 12
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "How do bees make honey?",
    "Who wrote Hamlet?",
    "What causes the tides?",
    "How does a refrigerator work?",
    "Name three renewable sources of energy.",
    "What is the difference between a virus and a bacterium?",
    "How do I boil an egg?",
    "What language is spoken in Brazil?",
    "Explain what inflation means.",
    "Why do leaves change colour in autumn?",
    "Write a short poem about the sea.",
    "What is a prime number?",
    "How far away is the moon?",
    "Give me a tip for sleeping better.",
    "What does a compiler do?",
    "Who painted the Mona Lisa?",
    "How do vaccines work?",
    "What is the boiling point of water?",
    "Summarise the plot of Romeo and Juliet.",
    "What is photosynthesis?",
    "How can I learn to play the guitar?",
    "Why do cats purr?",
    "What is the largest ocean?",
    "Describe a sunset in one sentence.",
    "What is gravity?",
    "How is paper made?",
    "What should I cook tonight?",
    "Tell me a joke.",
    "What is the meaning of democracy?",
    "How do airplanes stay in the air?",
    "Which planet is the hottest?",
    "What is machine learning?",
    "How do I tie a tie?",
    "Why is exercise healthy?",
    "What is the currency of Japan?",
    "How do earthquakes happen?",
    "What is a metaphor?",
    "Translate good morning into Spanish.",
)
FORMS = {"plain": QUESTIONS, "as the tasks": tuple(f"1. {question}{ARROW}" for question in QUESTIONS)}
"""The prompts, as they are and written like the tasks' own."""


def answer(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[str]:
    """Return what the model writes greedily for each prompt."""
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
    with torch.no_grad():
        tokens = model.generate(
            **batch, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=tokenizer.pad_token_id
        )
    return list(tokenizer.batch_decode(tokens[:, batch.input_ids.shape[1] :], skip_special_tokens=True))


def decide(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    abstain: float | None,
) -> tuple[list[str], list[float], list[str]]:
    """Return for each prompt the member that served it, the decision's confidence, and what was written."""
    rule = route_as(model, scope="prompt", top_k=1, abstain=abstain)
    with rule, routing(model) as record:
        answers = answer(model, tokenizer, prompts)
    decisions = sorted(record.decisions, key=lambda decision: decision.sequence)
    return (
        ["".join(decision.members[:1]) for decision in decisions],
        [decision.confidence for decision in decisions],
        answers,
    )
