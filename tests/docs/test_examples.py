"""Every Python example of the pages runs here, and every marked block in the test that its mark names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import meteora_registry as meteora
from meteora_registry.schemas.bundle import BundleConfig, Fitting
from support.models import LOADS_WITH_PEFT, make_adapter, tiny_llama
from support.pages import Block, blocks_of, pages
from support.source_tree import ROOT
from support.task_data import save_text_base, write_task_data

NAMES = ("legal", "medical")
EXAMPLES = [block for page in pages() for block in blocks_of(page) if block.is_python]
HERE = sorted({block.page for block in EXAMPLES if block.runner is None})
MARKED = [block for page in pages() for block in blocks_of(page) if block.runner is not None]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the guides name: a base, data, and a fitted bundle."""
    folder = tmp_path_factory.mktemp("guides")
    save_text_base(folder / "base")
    (folder / "llama").symlink_to("base")
    write_task_data(folder / "data", NAMES)
    (folder / "tasks").symlink_to("data")
    for seed, name in enumerate(NAMES):
        make_adapter(tiny_llama, folder / name, seed=seed, r=4 + seed, target_modules=["q_proj"])
    fused = meteora.fuse([folder / name for name in NAMES], base=str(folder / "base"))
    fused.fit(folder / "data").save(folder / "bundle")
    return folder


def check_evaluation(names: dict[str, Any], printed: str) -> None:
    assert [mode.mode for mode in names["found"].modes] == ["member", "routed"]
    assert printed.split()[::2] == ["member", "routed"]


def check_fit(names: dict[str, Any], printed: str) -> None:
    assert names["config"].names == NAMES
    assert names["gates"].fitting.method.startswith("ridge, ")
    assert {len(rows) for rows, _ in names["gates"].values.values()} == {len(NAMES)}


def check_kernels(names: dict[str, Any], printed: str) -> None:
    # Both calls in place add to a base of zeros what the first returned.
    assert names["y"].abs().max() > 0
    torch.testing.assert_close(names["base_output"], 2 * names["y"].detach())


def check_running(names: dict[str, Any], printed: str) -> None:
    assert (len(names["answers"]), type(names["answer"].text)) == (2, str)
    assert set(names["answer"].decisions[0].members) <= set(NAMES)
    gates = BundleConfig.read(Path("trained/adapter_config.json").read_bytes()).gate
    assert isinstance(gates.fitted, Fitting)
    assert gates.fitted.method == "trained"


def check_trace(names: dict[str, Any], printed: str) -> None:
    page = Path("trace.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("bundle, by token", *NAMES))


# What the examples of a page must have come to, beyond running.
CHECKS = {
    "docs/evaluation.md": check_evaluation,
    "docs/gate-fitting.md": check_fit,
    "docs/kernels.md": check_kernels,
    "docs/runtime.md": check_running,
    "docs/tracing.md": check_trace,
}


@LOADS_WITH_PEFT
@pytest.mark.parametrize("page", HERE)
def test_examples_of_the_page_run_in_their_order(
    place: Path, page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("METEORA_HOME", str(place / "home"))
    names: dict[str, Any] = {}
    for block in EXAMPLES:
        if block.page == page and block.runner is None:
            exec(compile(block.text, page, "exec"), names)
    # The page on the Hub has an import alone.
    if page != "docs/hub.md":
        CHECKS[page](names, capsys.readouterr().out)


@pytest.mark.parametrize("block", MARKED, ids=lambda block: f"{block.page}, {block.mark.partition(':')[0]}")
def test_marked_block_is_used_by_the_test_that_its_mark_names(block: Block) -> None:
    assert block.runner is not None
    name, file = block.runner
    source = (ROOT / file).read_text(encoding="utf-8")
    assert f'"{name}")' in source
    assert f'{Path(block.page).name}"' in source


def test_every_fence_is_the_edge_of_a_block() -> None:
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        fences = [line for line in text.splitlines() if line.lstrip().startswith("```")]
        assert len(fences) == 2 * len(blocks_of(page)), page
