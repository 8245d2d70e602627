"""The command ``serve`` in front of engines: one that it starts, and ones that run already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import psutil
import pytest

from meteora_registry.bundle import Bundle
from meteora_registry.fuser.refit import refit_bundle
from support import warm
from support.engines import fake_engines
from support.fake_vllm import make_program
from support.members import draw_gates, fuse, read_members
from support.models import make_adapter, save_base, tiny_gpt2, tiny_llama
from support.program import PROGRAM, Run
from support.task_data import TEMPLATE, save_text_base, tiny_tokenizer

MEMBERS = ("legal", "medical")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base and a bundle that decides by the prompt."""
    folder = tmp_path_factory.mktemp("engines")
    adapters = {
        name: make_adapter(tiny_llama, folder / name, seed=seed, r=4, target_modules=["q_proj", "v_proj"])
        for seed, name in enumerate(MEMBERS)
    }
    save_text_base(folder / "base", pad_token="<unk>", chat_template=TEMPLATE)
    fused = Bundle.open(fuse(read_members(adapters), folder / "fused", gate="normal"))
    (folder / "routed").mkdir()
    refit_bundle(fused, replace(draw_gates(fused, {}, scope="prompt"), top_k=2), folder / "routed")
    return folder


@contextmanager
def command(
    place: Path, *arguments: object, **variables: str
) -> Iterator[tuple[str, list[str], subprocess.Popen[str]]]:
    """Run ``serve`` within the block: its URL, what it printed first, and the process."""
    line = [PROGRAM, "serve", place / "routed", "--base", place / "base", "--port", "0", *arguments]
    process = warm.RuntimePopen(
        [*map(str, line)], stderr=subprocess.PIPE, text=True, env=os.environ | variables
    )
    with process:
        printed: list[str] = []
        for text in process.stderr:
            printed.append(text)
            if text.startswith("listening on "):
                break
        try:
            yield printed[-1].split()[2].rstrip(";"), printed, process
        finally:
            process.kill()


def complete(url: str, model: str, **headers: str) -> httpx2.Response:
    """Return the answer to a short prompt."""
    body = {"model": model, "prompt": "w1 w2", "max_tokens": 4, "temperature": 0}
    return httpx2.post(f"{url}/completions", json=body, headers=headers, timeout=60)


def test_engines_that_run_already_answer(place: Path) -> None:
    with fake_engines(2, key="the-engines-key") as engines:
        urls = [argument for engine in engines for argument in ("--engine-url", f"{engine.url}/v1")]
        with command(place, *urls, METEORA_ENGINE_KEY="the-engines-key") as (url, printed, process):
            answers = [complete(url, model) for model in ("routed", "routed/legal", "routed/base")]
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[0].json()["meteora"]["member"] in MEMBERS
    assert sorted(body["model"] for engine in engines for body in engine.bodies)[-1] == "org/base"
    assert (process.returncode, rest) == (0, "")
    assert "gives a request 2 members; an engine gives it the likeliest alone" in "".join(printed)


def test_vllm_is_started_with_the_extracted_members_and_stopped(place: Path, tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    options = ["--engine", "vllm", "--engine-args", "--dtype float32", "--engine-log", log]
    with command(place, *options, METEORA_VLLM=str(make_program(tmp_path))) as (url, _, process):
        answer = complete(url, "routed/legal")
        children = psutil.Process(process.pid).children()
        [engine] = [child for child in children if "support.fake_vllm" in child.cmdline()]
        arguments = engine.cmdline()
        members = [json.loads(each) for each in arguments[arguments.index("--lora-modules") + 1 :]]
        found = [Path(member["path"], "adapter_model.safetensors").read_bytes() for member in members]
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert (answer.status_code, answer.json()["meteora"]["member"]) == (200, "legal"), answer.text
    assert found == [(place / name / "adapter_model.safetensors").read_bytes() for name in MEMBERS]
    assert arguments[arguments.index("--dtype") :][:2] == ["--dtype", "float32"]
    assert (process.returncode, rest) == (0, "")
    assert not engine.is_running()
    assert log.exists()
    assert not Path(members[0]["path"]).exists()


def refused(run: Run, bundle: Path, base: Path, *arguments: str, code: int) -> str:
    """Return what the command prints as it ends with this code."""
    found = run("serve", bundle, "--base", base, "--port", "0", *arguments)
    assert found.returncode == code, found.stderr
    return found.stderr


def test_vllm_that_does_not_start_ends_the_command_with_its_output(
    place: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_text_base(tmp_path / "base", pad_token="<unk>")
    (base / "refused").touch()
    monkeypatch.setenv("METEORA_VLLM", str(make_program(tmp_path)))
    found = refused(run, place / "routed", base, "--engine", "vllm", code=2)
    assert "error: vLLM ended with code 3 before it answered" in found
    assert "error: there is no memory" in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "vllm", "--engine-url", "http://h:1"], "both `--engine` and `--engine-url` are given"),
        (["--engine-args", "--x", "--engine-url", "http://h:1"], "`--engine-args` goes with `--engine vllm`"),
        (["--engine-log", "a.log"], "`--engine-log` goes with `--engine vllm`"),
        (["--engine", "vllm", "--engine-args", "'"], "`--engine-args` cannot be split: no closing quotation"),
        (["--engine", "vllm"], "METEORA_VLLM is `/none/vllm`, which is not a program"),
        (["--engine-url", "h:1"], "the engine's URL is `h:1`, expected `http://` or `https://` and a host"),
    ],
    ids=["two-kinds", "arguments-of-none", "log-of-none", "open-quote", "no-program", "no-url"],
)
def test_engines_that_cannot_be_are_refused(
    place: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("METEORA_VLLM", "/none/vllm")
    assert message in refused(run, place / "routed", place / "base", *arguments, code=2)


def test_bundle_that_decides_by_token_has_no_engines(place: Path, run: Run) -> None:
    url = "http://127.0.0.1:1"
    found = refused(run, place / "fused", place / "base", "--engine-url", url, code=1)
    assert "the bundle's scope is `token`, expected `prompt`" in found
    assert "gate fit --scope prompt" in found


def test_member_that_vllm_does_not_serve_is_named_before_vllm_is_started(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = {
        name: make_adapter(
            tiny_gpt2, tmp_path / name, seed=seed, r=4, target_modules=["c_attn"], fan_in_fan_out=True
        )
        for seed, name in enumerate(MEMBERS)
    }
    base = save_base(tiny_gpt2(), tmp_path / "base")
    tiny_tokenizer().save_pretrained(base)
    fused = Bundle.open(fuse(read_members(adapters), tmp_path / "fused", gate="normal"))
    (tmp_path / "routed").mkdir()
    refit_bundle(fused, draw_gates(fused, {}, scope="prompt"), tmp_path / "routed")
    monkeypatch.setenv("METEORA_VLLM", "/bin/false")
    found = refused(run, tmp_path / "routed", base, "--engine", "vllm", code=1)
    assert "vLLM does not serve the member `legal`: MR8" in found
    assert "GPT2LMHeadModel" in found
