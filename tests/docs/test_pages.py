"""The pages for people: every link leads to a file and a heading, and the commands of the short pages run."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from support.models import make_adapter, tiny_llama
from support.pages import examples_of
from support.program import PROGRAM, Run

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
MEMBERS = ("legal", "medical")


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as code hosts make them; a repeated one gets a number."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_with_an_anchor_leads_to_a_heading(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", text):
        other = page.parent / target if target else page
        if other.suffix == ".md":
            assert anchor in anchors_of(other), f"{target}#{anchor}"


def test_contents_lead_to_every_page() -> None:
    contents = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", contents)}
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    assert pages - linked == {"README.md"}


def commands_of(page: str, name: str) -> list[str]:
    return [line for text in examples_of(page, name) for line in text.splitlines()]


def run_session(run: Run, commands: list[str]) -> None:
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == PROGRAM.name
        result = run(*arguments)
        assert result.returncode == 0, f"{command}\n{result.stderr}"


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    for seed, name in enumerate(MEMBERS):
        make_adapter(
            tiny_llama, tmp_path / "adapters" / name, seed=seed, r=4 + seed, target_modules=["q_proj"]
        )
    return tmp_path


def test_commands_for_a_team_run_in_their_order(
    run: Run, adapters: Path, postgres_catalog_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog, store, *commands = commands_of("docs/team.md", "session")
    assert catalog.startswith("export METEORA_CATALOG=postgresql://")
    assert store.startswith("export METEORA_STORE=/")
    (adapters / "store").mkdir()
    monkeypatch.setenv("METEORA_CATALOG", postgres_catalog_url)
    monkeypatch.setenv("METEORA_STORE", str(adapters / "store"))
    (upgrade,) = commands_of("docs/team.md", "owner")
    owner = upgrade.replace("postgresql://meteora_owner@host/meteora", postgres_catalog_url)
    run_session(run, [owner, *commands])


@pytest.mark.usefixtures("adapters")
def test_commands_for_the_authors_layout_run(run: Run) -> None:
    before = [
        f"{PROGRAM.name} add adapters/legal adapters/medical --base org/base",
        f"{PROGRAM.name} fuse legal medical --out bundle",
    ]
    run_session(run, before + commands_of("docs/paper.md", "session"))
