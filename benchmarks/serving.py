"""Serving a bundle, by our own server and in front of vLLM: ``python -m benchmarks.run serving STAGE``.

The base and the random adapters are those of the benchmark of speed, with gates fitted on questions of
another form. Requests are sent by the `openai` client. The stages:

- ``agreement``: the same prompts through the runtime, `serve`, and `serve` in front of a vLLM engine;
- ``load``: many requests at once, of mixed lengths and models, some of them cancelled, and where there are
  two engines one of them killed in the middle;
- ``memory``: the server's memory over many requests;
- ``throughput``: tokens a second beside `transformers serve` with one plain LoRA, and the router's cost
  beside the same engine asked for the member by name.

``--vllm`` names the program of an environment that has vLLM; what needs it is left out without.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import openai
import torch

from benchmarks import serving_tables
from benchmarks.gates.base import prepare_base
from benchmarks.machine import description
from benchmarks.pages import Row, write_row
from benchmarks.servers import Server, running, say
from benchmarks.serving_tables import NAMED, ONE_LORA
from benchmarks.speed import QUESTIONS, fuse_adapters, make_adapters, write_questions
from meteora_registry.bundle import Bundle
from meteora_registry.runtime import load_bundle

T = TypeVar("T")

NAME = "bundle"
# Behind a bare question the base ends at once.
FORM = "{}\nAnswer:"
STAGES = ("agreement", "load", "memory", "throughput")
MEGABYTE = 1 << 20
TIMED_TURNS = 3
ENGINE = "--max-model-len 1024 --dtype float32 --enforce-eager"
ENGINE_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """The extent of a run."""

    prompts: int = 40
    answer_tokens: int = 24
    at_once: int = 200
    cancelled: int = 20
    in_all: int = 2000
    sample_every: int = 200
    timed_alone: int = 6
    timed_together: int = 16
    timed_tokens: int = 32


@dataclass(frozen=True, slots=True)
class Setup:
    """The folders of a base, of adapters for it, and of their fitted bundle."""

    base: Path
    adapters: tuple[Path, ...]
    bundle: Path


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its folders, its extent and its engine.

    Attributes:
        setup: the folders of the base, the adapters and the bundle.
        members: the members' names, in the bundle's order.
        scratch: a folder for logs and engines' copies.
        sizes: the extent.
        vllm: the program of vLLM, or None.
    """

    setup: Setup
    members: tuple[str, ...]
    scratch: Path
    sizes: Sizes
    vllm: Path | None

    def prompts(self, count: int, *, seed: int = 1, members: int | None = None) -> list[str]:
        """Return prompts that the fit has not seen, of the first members, or of all, in turn."""
        numbers = random.Random(seed)
        members = members or len(self.members)
        questions = [QUESTIONS[n % members].format(numbers.randrange(32, 100)) for n in range(count)]
        # Without it the base ends at once.
        return [f"{question}\nAnswer:" for question in questions]

    def serve(self, *options: str) -> AbstractContextManager[Server]:
        """Run `serve` for the bundle."""
        command = [str(Path(sys.executable).with_name("meteora-registry")), "serve", str(self.setup.bundle)]
        base = ["--base", str(self.setup.base), "--name", NAME, "--port", "{port}"]
        log = self.scratch / f"serve-{len(list(self.scratch.glob('serve-*')))}.log"
        environment = os.environ | {
            "METEORA_HOME": str(self.scratch / "home"),
            "METEORA_VLLM": str(self.vllm),
        }
        environment |= ENGINE_ENVIRONMENT
        return running([*command, *base, *options], log=log, environment=environment)

    @contextmanager
    def engine(self) -> Iterator[Server]:
        """Run a vLLM engine with every member under its own name."""
        modules = [f"{path.name}={path}" for path in self.setup.adapters]
        command = [str(self.vllm), "serve", str(self.setup.base), "--served-model-name", "base"]
        lora = ["--enable-lora", "--max-loras", str(len(modules)), "--lora-modules", *modules]
        sizes = [*ENGINE.split(), "--port", "{port}"]
        log = self.scratch / f"engine-{len(list(self.scratch.glob('engine-*')))}.log"
        with running(
            [*command, *lora, *sizes], log=log, environment=os.environ | ENGINE_ENVIRONMENT
        ) as server:
            yield server


def main(arguments: list[str]) -> None:
    """Run stages and print rows, or write the page's section with ``--page``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run serving", description=__doc__)
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], default=[])
    parser.add_argument("--page", action="store_true", help="write the tables of docs/serving.md and stop")
    parser.add_argument("--cache", type=Path, help="folder that keeps base and bundle between runs")
    parser.add_argument("--vllm", type=Path, help="program of vLLM, in an environment of its own")
    parser.add_argument("--transformers", type=Path, help="program of transformers with its extra `serving`")
    parser.add_argument("--out", type=Path, help="file to append rows to; standard output without it")
    options = parser.parse_args(arguments)
    if options.page:
        serving_tables.write_page()
        return
    with tempfile.TemporaryDirectory() as scratch:
        cache = options.cache or Path(scratch)
        cache.mkdir(parents=True, exist_ok=True)
        setup = prepare(prepare_base(cache), cache / "serving")
        for row in measure(
            setup, options.stages or STAGES, Path(scratch), Sizes(), options.vllm, options.transformers
        ):
            write_row(row, options.out)


def prepare(base: Path, folder: Path) -> Setup:
    """Return random adapters for a base and their fitted bundle, made in ``folder`` on the first call."""
    adapters = tuple(folder / f"member{member}" for member in range(len(QUESTIONS)))
    bundle, data = folder / NAME, folder / "data"
    if not bundle.exists():
        make_adapters(base, adapters)
        write_questions(adapters, data, [FORM.format(question) for question in QUESTIONS])
        fuse_adapters(base, adapters).fit(data).save(bundle)
    return Setup(base, adapters, bundle)


def measure(
    setup: Setup,
    stages: Sequence[str],
    scratch: Path,
    sizes: Sizes,
    vllm: Path | None = None,
    transformers: Path | None = None,
) -> Iterator[Row]:
    """Yield the rows of some stages."""
    run = Run(setup, Bundle.open(setup.bundle).config.names, scratch, sizes, vllm)
    facts = description("cpu") | {"cores": os.cpu_count(), "openai": openai.__version__}
    for stage in stages:
        say(stage)
        made = throughput(run, transformers) if stage == "throughput" else _STAGES[stage](run)
        for row in made:
            yield {"stage": stage} | row | {"machine": facts}


# --- the same prompts in three places ---


def agreement(run: Run) -> Iterator[Row]:
    """Yield a row for each prompt: who answered and what, in the runtime, by `serve` and by an engine."""
    prompts, limit = run.prompts(run.sizes.prompts), run.sizes.answer_tokens
    loaded = load_bundle(run.setup.bundle, run.setup.base, dtype=torch.float32)
    own = [loaded.answer(prompt, max_new_tokens=limit) for prompt in prompts]
    found = [{"member": next(iter(answer.decisions[0].members), None), "text": answer.text} for answer in own]
    served = {}
    with run.serve() as server:
        served["serve"] = asyncio.run(_answers(server, prompts, limit))
    if run.vllm is not None:
        with run.serve(
            "--engine", "vllm", "--engine-args", f"--max-loras {len(run.members)} {ENGINE}"
        ) as server:
            served["vllm"] = asyncio.run(_answers(server, prompts, limit))
    for place, prompt in enumerate(prompts):
        row: Row = {"prompt": prompt, "runtime": found[place]}
        for name, answers in served.items():
            row[name] = answers[place]
        if "vllm" in row and row["vllm"]["text"] != found[place]["text"]:
            row["difference"] = _first_difference(loaded, prompt, found[place], row["vllm"]["text"])
        yield row


async def _answers(server: Server, prompts: Sequence[str], limit: int) -> list[Row]:
    """Return the member and the text for each prompt, asked all at once."""
    async with _client(server) as client:

        async def ask(prompt: str) -> Row:
            answer = await client.completions.create(
                model=NAME, prompt=prompt, max_tokens=limit, temperature=0
            )
            extra = answer.model_extra or {}
            return {"member": extra["meteora"]["member"], "text": answer.choices[0].text}

        return await asyncio.gather(*map(ask, prompts))


def _first_difference(loaded: Any, prompt: str, own: Row, other: str) -> Row:
    """Return the first token that differs, and how near its two rivals are in our own logits."""
    tokenizer = loaded.tokenizer
    first, second = (tokenizer(prompt + text)["input_ids"] for text in (own["text"], other))
    place = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    start = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad(), loaded.force(own["member"]):
        logits = loaded.model(input_ids=torch.tensor([first[:place]])).logits[0, -1]
    best = logits.topk(2)
    return {
        "token": place - start,
        "tokens": [tokenizer.decode([ids[place]]) if place < len(ids) else None for ids in (first, second)],
        "margin": float(best.values[0] - best.values[1]),
        "spread": float(logits.std()),
    }


# --- many at once ---


@dataclass(slots=True)
class Outcome:
    """The end of one request."""

    status: str
    seconds: float
    tokens: int = 0
    first_seconds: float | None = None


def load(run: Run) -> Iterator[Row]:
    """Yield a row for each server: what became of many requests at once."""
    with run.serve("--queue", str(run.sizes.at_once)) as server:
        yield {"server": "serve"} | asyncio.run(_crowd(run, server, lambda: None))
    if run.vllm is None:
        return
    with run.engine() as first, run.engine() as second:
        options = ["--engine-url", first.url, "--engine-url", second.url, "--queue", str(run.sizes.at_once)]
        with run.serve(*options) as server:
            yield {"server": "serve, two vLLM engines, one killed"} | asyncio.run(
                _crowd(run, server, second.kill)
            )


async def _crowd(run: Run, server: Server, disturb: Callable[[], None]) -> Row:
    """Send requests all at once, cancel some, disturb the server when a quarter is answered."""
    sizes, choice = run.sizes, random.Random(2)
    models = [NAME, f"{NAME}/base", *(f"{NAME}/{member}" for member in run.members)]
    cancelled = {*choice.sample(range(sizes.at_once), sizes.cancelled)}
    done = 0
    quarter = asyncio.Event()

    async with _client(server) as client:

        async def send(place: int, prompt: str) -> Outcome:
            nonlocal done
            words = prompt + " Go on." * choice.randrange(30)
            stop = choice.randrange(1, 4) if place in cancelled else None
            model = NAME if place % 2 else models[place // 2 % len(models)]
            found = await _stream(client, model, words, choice.randrange(4, 40), stop)
            done += 1
            if done >= sizes.at_once // 4:
                quarter.set()
            return found

        async def disturbed() -> None:
            await quarter.wait()
            await asyncio.to_thread(disturb)

        began = time.perf_counter()
        prompts = run.prompts(sizes.at_once, seed=3)
        sent = [send(place, prompt) for place, prompt in enumerate(prompts)]
        *outcomes, _ = await asyncio.gather(*sent, disturbed())
        seconds = time.perf_counter() - began
        after = await _stream(client, NAME, prompts[0], 4, None)
    return _summary(outcomes, seconds) | {"afterwards": after.status}


async def _stream(
    client: openai.AsyncOpenAI, model: str, prompt: str, limit: int, stop_after: int | None
) -> Outcome:
    """Send one request and read its answer as it comes; ``stop_after`` so many pieces hang up."""
    began = time.perf_counter()
    first: float | None = None
    pieces = 0
    try:
        stream = await client.completions.create(
            model=model, prompt=prompt, max_tokens=limit, temperature=0, stream=True
        )
        async for _ in _closing(stream):
            first = first or time.perf_counter() - began
            pieces += 1
            if pieces == stop_after:
                return Outcome("cancelled", time.perf_counter() - began, pieces, first)
        return Outcome("answered", time.perf_counter() - began, pieces, first)
    except openai.APIStatusError as error:
        return Outcome(str(error.status_code), time.perf_counter() - began)
    except openai.APIError as error:
        # An error within a stream in OpenAI's form; a connection that breaks is another class.
        end = "broken" if isinstance(error, openai.APIConnectionError) else "error in the stream"
        return Outcome(end, time.perf_counter() - began, pieces, first)


async def _closing(stream: Any) -> AsyncIterator[Any]:
    try:
        async for piece in stream:
            yield piece
    finally:
        await stream.close()


def _summary(outcomes: Sequence[Outcome], seconds: float) -> Row:
    answered = sorted(each.seconds for each in outcomes if each.status == "answered")
    firsts = sorted(
        each.first_seconds for each in outcomes if each.status == "answered" and each.first_seconds
    )
    return {
        "requests": len(outcomes),
        "outcomes": dict(Counter(each.status for each in outcomes).most_common()),
        "seconds": round(seconds, 2),
        "pieces_per_second": round(sum(each.tokens for each in outcomes) / seconds, 1),
        "first_piece_p50": _quantile(firsts, 0.5),
        "answered_p50": _quantile(answered, 0.5),
        "answered_p95": _quantile(answered, 0.95),
    }


def _quantile(values: Sequence[float], share: float) -> float | None:
    return round(values[min(int(len(values) * share), len(values) - 1)], 2) if values else None


# --- memory ---


def memory(run: Run) -> Iterator[Row]:
    """Yield the server's memory after every so many requests."""
    with run.serve() as server:
        yield asyncio.run(_many(run, server))


async def _many(run: Run, server: Server) -> Row:
    sizes, found = run.sizes, []
    async with _client(server) as client:
        for start in range(0, sizes.in_all, sizes.sample_every):
            prompts = run.prompts(sizes.sample_every, seed=start)
            outcomes = await _paced(
                [
                    functools.partial(_stream, client, NAME, prompt, 4, 1 if place % 10 == 0 else None)
                    for place, prompt in enumerate(prompts)
                ],
                at_once=16,
            )
            statuses = dict(Counter(each.status for each in outcomes))
            megabytes = round(server.memory_bytes() / MEGABYTE, 1)
            say(start + len(prompts), megabytes, statuses)
            found.append({"requests": start + len(prompts), "megabytes": megabytes, "outcomes": statuses})
    return {"server": "serve", "samples": found}


async def _paced(calls: Sequence[Callable[[], Coroutine[Any, Any, T]]], *, at_once: int) -> list[T]:
    """Make calls, so many at a time."""
    slots = asyncio.Semaphore(at_once)

    async def one(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async with slots:
            return await call()

    return await asyncio.gather(*map(one, calls))


# --- throughput ---


def throughput(run: Run, transformers: Path | None) -> Iterator[Row]:
    """Yield tokens a second of each way to the same member; ways that are compared take turns."""
    member = run.members[0]
    with run.serve() as server, ExitStack() as stack:
        places = {"serve, forced": (server, f"{NAME}/{member}"), "serve, routed": (server, NAME)}
        if transformers is not None:
            folder = _adapter_with_base(run)
            command = [str(transformers), "serve", "--port", "{port}", "--dtype", "float32"]
            log, environment = run.scratch / "transformers.log", os.environ | {"HF_HUB_OFFLINE": "1"}
            other = stack.enter_context(running(command, log=log, environment=environment))
            places[ONE_LORA] = (other, str(folder))
        yield from _rates(run, places)
    if run.vllm is not None:
        with run.engine() as engine, run.serve("--engine-url", engine.url) as server:
            places = {
                NAMED: (engine, member),
                "router and vLLM, forced": (server, f"{NAME}/{member}"),
                "router and vLLM, routed": (server, NAME),
            }
            yield from _rates(run, places)


def _adapter_with_base(run: Run) -> Path:
    """Return a folder with one adapter and its base, which is what `transformers serve` loads as a whole."""
    folder = run.scratch / "one-lora"
    shutil.copytree(run.setup.adapters[0], folder)
    for path in run.setup.base.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    return folder


def _rates(run: Run, places: dict[str, tuple[Server, str]]) -> Iterator[Row]:
    """Yield tokens a second for one request at a time and for eight, the ways in turns."""
    sizes, order = run.sizes, random.Random(0)
    for at_once, count in ((1, sizes.timed_alone), (8, sizes.timed_together)):
        found: dict[str, list[Rate]] = {name: [] for name in places}
        for turn in range(1 + TIMED_TURNS):
            # Of one member, so that all ways write the same answers.
            prompts = run.prompts(count, seed=turn, members=1)
            for name in order.sample([*places], len(places)):
                server, model = places[name]
                rate = asyncio.run(_rate(server, model, prompts, at_once, sizes.timed_tokens))
                # The first turn warms up.
                if turn:
                    found[name].append(rate)
        for name, rates in found.items():
            per_second = [round(rate.tokens / rate.seconds, 1) for rate in rates]
            say(name, at_once, per_second)
            tokens = [rate.tokens for rate in rates]
            yield {"way": name, "at_once": at_once, "tokens_per_second": per_second, "tokens": tokens}


@dataclass(frozen=True, slots=True)
class Rate:
    """The tokens of some answers, and the seconds until the last of them came."""

    tokens: int
    seconds: float


async def _rate(server: Server, model: str, prompts: Sequence[str], at_once: int, limit: int) -> Rate:
    async with _client(server) as client:

        async def ask(prompt: str) -> int:
            answer = await client.completions.create(
                model=model, prompt=prompt, max_tokens=limit, temperature=0
            )
            assert answer.usage is not None
            return answer.usage.completion_tokens

        began = time.perf_counter()
        counts = await _paced([functools.partial(ask, prompt) for prompt in prompts], at_once=at_once)
        return Rate(sum(counts), time.perf_counter() - began)


def _client(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)


_STAGES: dict[str, Callable[[Run], Iterator[Row]]] = {"agreement": agreement, "load": load, "memory": memory}
