"""An engine that the server starts: its arguments, its end, and its life as long as the server's."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from meteora_registry.bundle import Bundle
from meteora_registry.schemas.errors import BundleRefused, SourceUnreadable, UsageError
from meteora_registry.serving import tied_program
from meteora_registry.serving.engines import Engines, EngineTimes
from meteora_registry.serving.vllm_process import (
    VllmPlan,
    VllmProcess,
    find_program,
    max_lora_rank,
    member_folders,
)
from support.bundles import write_bundle
from support.fake_vllm import make_program
from support.members import fuse, read_members
from support.models import make_adapter, tiny_llama

TIED_PROGRAM = str(tied_program.__file__)
QUICK = EngineTimes(between_checks=0.05, least_pause=0.02, most_pause=0.05)


def make_plan(folder: Path, *, more: Sequence[str] = ()) -> VllmPlan:
    """Return the plan of a fake engine with two members."""
    (folder / "base").mkdir()
    members = {name: folder / name for name in ("legal", "medical")}
    return VllmPlan(make_program(folder), str(folder / "base"), members, 16, more)


@asynccontextmanager
async def started(process: VllmProcess, *, is_watched: bool = True) -> AsyncIterator[Engines]:
    """Run an engine within the block."""
    engines = Engines(
        [process.url],
        ["legal", "medical"],
        max_in_flight=8,
        key=process.key,
        times=QUICK,
        are_starting=True,
    )
    try:
        await process.start()
        if is_watched:
            await engines.start()
            await process.until(engines.at(process.url).found)
        yield engines
    finally:
        await engines.close()
        await process.close()


async def ask(engines: Engines, prompt: str) -> str:
    """Return the text of an answer."""
    body = {"model": "legal", "prompt": prompt}
    answer = await engines.ask("/v1/completions", lambda _: body, deadline=1e9)
    return str(answer["choices"][0]["text"])


def test_engine_is_started_asked_restarted_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("meteora_registry.serving.vllm_process._LEAST_PAUSE_SECONDS", 0.01)
    monkeypatch.setenv("METEORA_API_KEY", "the-servers-own-key")
    process = VllmProcess(make_plan(tmp_path), tmp_path / "vllm.log")

    async def test() -> None:
        async with started(process) as engines:
            assert await ask(engines, "w1") == "w1"
            first = running_engine()
            assert first.environ()["VLLM_API_KEY"] == process.key
            assert "METEORA_API_KEY" not in first.environ()
            found = engines.at(process.url).found
            os.kill(first.pid, signal.SIGKILL)
            while found.is_set():
                await asyncio.sleep(0.01)
            await found.wait()
            assert await ask(engines, "w2") == "w2"
            assert running_engine().pid != first.pid

    asyncio.run(test())
    assert find_engines() == []
    printed = [record.message.partition(" `")[0] for record in caplog.records if record.name != "asyncio"]
    # Nothing of that it did not answer while it was starting.
    assert sorted(printed) == [
        "the engine at",
        "warning: the engine at",
        "warning: vLLM ended with signal 9 and is started again in 0.01 seconds; its output is in",
    ]


def running_engine() -> psutil.Process:
    """Return the process of the fake engine."""
    [found] = find_engines()
    return found


def find_engines() -> list[psutil.Process]:
    """Return the fake engines among the children of this process."""
    children = psutil.Process().children(recursive=True)
    return [each for each in children if "support.fake_vllm" in each.cmdline()]


def test_arguments_name_the_base_the_members_and_what_the_user_adds(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, more=["--dtype", "float32", "--max-loras", "1"])
    program, *found = plan.arguments(8123)
    assert program == str(tmp_path / "vllm")
    assert found[:2] == ["serve", str(tmp_path / "base")]
    options = dict(itertools.pairwise(found))
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "8123"
    assert options["--served-model-name"] == "base"
    assert options["--max-lora-rank"] == "16"
    assert options["--max-cpu-loras"] == "2"
    # What comes last holds.
    assert [found[place + 1] for place, each in enumerate(found) if each == "--max-loras"] == ["2", "1"]
    assert [json.loads(each) for each in found[found.index("--lora-modules") + 1 :]] == [
        {"name": "legal", "path": str(tmp_path / "legal")},
        {"name": "medical", "path": str(tmp_path / "medical")},
    ]


def test_engine_that_does_not_come_up_is_reported_with_the_end_of_its_output(tmp_path: Path) -> None:
    process = VllmProcess(make_plan(tmp_path), tmp_path / "vllm.log")
    (tmp_path / "base" / "refused").touch()

    async def test() -> None:
        async with started(process):
            raise AssertionError

    with pytest.raises(SourceUnreadable, match=r"(?s)ended with code 3 before .*error: there is no memory"):
        asyncio.run(test())


def test_engine_whose_output_cannot_be_kept_is_not_started(tmp_path: Path) -> None:
    process = VllmProcess(make_plan(tmp_path), tmp_path / "none" / "vllm.log")

    async def test() -> None:
        async with started(process, is_watched=False):
            raise AssertionError

    with pytest.raises(SourceUnreadable, match="no such file or directory"):
        asyncio.run(test())
    assert find_engines() == []


def test_program_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """Not even a kill of the server leaves an engine behind."""
    code = f"""
import os, subprocess, sys
arguments = [sys.executable, {TIED_PROGRAM!r}, str(os.getpid()), "/bin/sleep", "600"]
child = subprocess.Popen(arguments)
while not open(f"/proc/{{child.pid}}/cmdline").read().startswith("/bin/sleep"):
    pass
print(child.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        engine = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    engine.wait(60)


def test_program_of_a_process_that_is_gone_is_not_started() -> None:
    found = subprocess.run(
        [sys.executable, TIED_PROGRAM, str(os.getpid() + 1), "/bin/echo", "started"], capture_output=True
    )
    assert (found.returncode, found.stdout) == (0, b"")


def test_members_are_the_bundles_own_files_or_extracted(tmp_path: Path) -> None:
    adapters = two_adapters(tmp_path)
    for name, options in (("with", {"with_experts": True}), ("without", {})):
        fuse(read_members(adapters), tmp_path / name, gate="normal", **options)
    kept = member_folders(Bundle.open(tmp_path / "with"), tmp_path / "scratch")
    assert kept == {name: tmp_path / "with" / "experts" / name for name in adapters}
    extracted = member_folders(Bundle.open(tmp_path / "without"), tmp_path / "scratch")
    for name, folder in extracted.items():
        own, found = (path / "adapter_model.safetensors" for path in (adapters[name], folder))
        assert found.read_bytes() == own.read_bytes()


def two_adapters(folder: Path, *, rank: int = 4) -> dict[str, Path]:
    """Return two adapters, one of them of rank 4."""
    return {
        name: make_adapter(tiny_llama, folder / name, seed=seed, r=own, target_modules=["q_proj"])
        for seed, (name, own) in enumerate([("one", 4), ("two", rank)])
    }


@pytest.mark.parametrize(("rank", "expected"), [(4, 8), (8, 8), (9, 16), (300, 320)])
def test_max_lora_rank_is_the_least_that_vllm_knows(tmp_path: Path, rank: int, expected: int) -> None:
    bundle = write_bundle(tmp_path / "bundle", two_adapters(tmp_path, rank=rank))
    assert max_lora_rank(Bundle.open(bundle)) == expected


def test_member_of_a_rank_that_vllm_does_not_take_is_named(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", two_adapters(tmp_path, rank=600))
    with pytest.raises(BundleRefused, match="the member `two` has rank 600, and vLLM takes at most 512"):
        max_lora_rank(Bundle.open(bundle))


def test_program_is_the_one_that_the_variable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    program = make_program(tmp_path)
    monkeypatch.setenv("METEORA_VLLM", str(program))
    assert find_program() == program
    monkeypatch.delenv("METEORA_VLLM")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program() == program


@pytest.mark.parametrize(
    ("value", "message"), [("", "there is no `vllm` on PATH"), ("/none/vllm", "METEORA_VLLM is `/none/vllm`")]
)
def test_missing_program_is_reported_with_the_variable(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("METEORA_VLLM", value)
    with pytest.raises(UsageError, match=message) as found:
        find_program()
    assert "METEORA_VLLM" in str(found.value.hint)
