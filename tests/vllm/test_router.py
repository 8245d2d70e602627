"""The router in front of a real vLLM engine: who answers, with what, and what becomes of both at the end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import openai
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from meteora_registry.bundle import Bundle
from meteora_registry.fuser.refit import refit_bundle
from meteora_registry.runtime import LoadedBundle, load_bundle
from meteora_registry.runtime.chat_prompt import chat_prompt
from support.members import draw_gates, fuse, read_members
from support.models import VOCABULARY, make_adapter
from support.patience import PATIENCE_SECONDS
from support.program import PROGRAM
from support.task_data import TEMPLATE, tiny_tokenizer
from support.vllm_engine import find_vllm

MEMBERS = {"legal": 4, "medical": 16}
NAME = "routed"
ANSWER_TOKENS = 8
# Two tokens whose scores differ by less may change places where another library rounds.
NEAR = 1e-3
ENGINE_ARGUMENTS = "--dtype float32 --enforce-eager --max-model-len 64"
PROMPTS = [
    " ".join(f"w{(seed * 7 + step * (seed + 3)) % 60}" for step in range(2 + seed % 9)) for seed in range(40)
]

pytestmark = pytest.mark.skipif(
    find_vllm() is None, reason="METEORA_VLLM names no `vllm`: run `make test-vllm`"
)


def wide_headed_llama() -> PreTrainedModel:
    """Return a Llama with heads of 32, which is the least that the engine's attention takes on a CPU."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@dataclass(frozen=True)
class Routed:
    """A router with an engine of its own, and the same bundle in this process."""

    url: str
    process: subprocess.Popen[str]
    loaded: LoadedBundle
    log: Path

    @property
    def engine(self) -> psutil.Process:
        """The engine's process."""
        children = psutil.Process(self.process.pid).children()
        [found] = [child for child in children if "--enable-lora" in child.cmdline()]
        return found

    def wait_for_engine(self) -> None:
        """Wait until the server has an engine."""
        while httpx2.get(f"{self.url}/health", timeout=PATIENCE_SECONDS).status_code != 200:
            assert self.process.poll() is None, self.log.read_text()


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routed]:
    folder = tmp_path_factory.mktemp("router")
    base = folder / "base"
    wide_headed_llama().save_pretrained(base)
    tiny_tokenizer(pad_token="<unk>", chat_template=TEMPLATE).save_pretrained(base)
    adapters = {
        name: make_adapter(wide_headed_llama, folder / name, seed=seed, r=rank, target_modules="all-linear")
        for seed, (name, rank) in enumerate(MEMBERS.items())
    }
    fused = Bundle.open(fuse(read_members(adapters), folder / "fused", gate="normal"))
    bundle = folder / NAME
    bundle.mkdir()
    refit_bundle(fused, draw_gates(fused, {}, scope="prompt"), bundle)
    command = [PROGRAM, "serve", bundle, "--base", base, "--port", "0", "--engine", "vllm"]
    command += ["--engine-args", ENGINE_ARGUMENTS, "--engine-log", folder / "vllm.log"]
    variables = {
        "METEORA_VLLM": str(find_vllm()),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment = os.environ | variables
    with subprocess.Popen(
        [*map(str, command)], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        printed = []
        for line in process.stderr:
            printed.append(line)
            if line.startswith("listening on "):
                break
        url = printed[-1].split()[2].removesuffix("/v1;")
        found = Routed(url, process, load_bundle(bundle, base), folder / "vllm.log")
        try:
            found.wait_for_engine()
            yield found
        finally:
            process.kill()


@pytest.fixture
def client(routed: Routed) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{routed.url}/v1", api_key="none", timeout=PATIENCE_SECONDS) as made:
        yield made


def assert_same_text(routed: Routed, prompt: str, member: str | None, text: str) -> None:
    """Pass if an answer is the greedy one of this process, up to a token that is as likely as another."""
    tokenizer = routed.loaded.tokenizer
    expected = routed.loaded.generate(prompt, max_new_tokens=ANSWER_TOKENS, member=member)
    theirs, ours = (tokenizer(each)["input_ids"] for each in (text, expected))
    place = next((at for at, (one, other) in enumerate(zip(theirs, ours, strict=True)) if one != other), None)
    if place is None:
        return
    ids = torch.tensor([tokenizer(prompt)["input_ids"] + ours[:place]])
    with torch.no_grad(), routed.loaded.force(member):
        scores = routed.loaded.model(ids).logits[0, -1]
    assert float(scores[ours[place]] - scores[theirs[place]]) < NEAR, (prompt, expected, text)


def test_forty_prompts_have_the_member_and_the_greedy_text_of_the_runtime(
    routed: Routed, client: openai.OpenAI
) -> None:
    members = set()
    for prompt in PROMPTS:
        found = client.completions.create(model=NAME, prompt=prompt, max_tokens=ANSWER_TOKENS, temperature=0)
        [decision] = routed.loaded.answer(prompt, max_new_tokens=1).decisions
        assert [found.meteora["member"]] == [*decision.members]
        assert found.meteora["confidence"] == pytest.approx(decision.confidence, abs=1e-5)
        assert_same_text(routed, prompt, found.meteora["member"], found.choices[0].text)
        members.add(found.meteora["member"])
    assert members == set(MEMBERS)


@pytest.mark.parametrize("member", [*MEMBERS, None], ids=[*MEMBERS, "base"])
def test_conversation_is_streamed_by_what_it_names(
    routed: Routed, client: openai.OpenAI, member: str | None
) -> None:
    turns = [{"role": "user", "content": "w5 w6 w7"}]
    chunks = client.chat.completions.create(
        model=f"{NAME}/{member or 'base'}",
        messages=turns,
        max_tokens=ANSWER_TOKENS,
        temperature=0,
        stream=True,
    )
    found = list(chunks)
    assert found[0].meteora["member"] == member
    text = "".join(chunk.choices[0].delta.content or "" for chunk in found)
    prompt = chat_prompt(routed.loaded.tokenizer, turns)
    if member is not None:
        assert_same_text(routed, prompt, member, text)
    assert found[-1].choices[0].finish_reason == "length"


def test_engine_that_is_killed_in_the_middle_is_reported_and_started_again(
    routed: Routed, client: openai.OpenAI
) -> None:
    chunks = client.completions.create(model=f"{NAME}/legal", prompt="w1", max_tokens=60, stream=True)
    next(iter(chunks))
    first = routed.engine
    os.killpg(first.pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="was lost while it answered"):
        list(chunks)
    routed.wait_for_engine()
    assert routed.engine.pid != first.pid
    assert client.completions.create(model=f"{NAME}/legal", prompt="w1", max_tokens=2).choices[0].text


def test_stopped_server_leaves_no_engine(routed: Routed) -> None:
    engine = routed.engine
    group = [engine, *engine.children(recursive=True)]
    routed.process.send_signal(signal.SIGTERM)
    assert routed.process.wait(PATIENCE_SECONDS) == 0
    assert [process for process in group if process.is_running()] == []
