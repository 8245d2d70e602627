"""The commands of the Makefile that run tests leave none out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.source_tree import ROOT

SAMPLED = ("from support.examples import", "@given(", "pytest.mark.slow")


def test_every_file_that_takes_a_sample_is_run_whole_by_the_longer_command() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\ntest-more: $(STAMP)\n")[2].partition("\n\n")[0]
    paths = [ROOT / path for path in re.findall(r"\btests/[\w/.]+", recipe)]
    assert all(path.exists() for path in paths)
    others = set((ROOT / "tests").rglob("test_*.py")) - {Path(__file__)}
    sampled = [file for file in others if any(mark in file.read_text(encoding="utf-8") for mark in SAMPLED)]
    assert len(sampled) > 10
    left_out = [file for file in sampled if not any(file.is_relative_to(path) for path in paths)]
    assert left_out == []


def test_two_commands_run_one_half_of_the_tests_each(request: pytest.FixtureRequest) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\ntest: $(STAMP) $(BROWSER)\n\t$(PYTEST) --part library $(ARGS)\n" in makefile
    assert "\ntest-engines: $(STAMP) $(BROWSER)\n\t$(PYTEST) --part engines $(ARGS)\n" in makefile
    conftest = request.config.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    assert all((ROOT / "tests" / path).exists() for path in conftest.ENGINES)


def test_what_is_slow_is_in_the_half_that_ci_runs_with_it(request: pytest.FixtureRequest) -> None:
    assert "\nmake test\nmake test-engines ARGS=--slow\n" in (ROOT / ".ci" / "run").read_text(
        encoding="utf-8"
    )
    conftest = request.config.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    engines = [ROOT / "tests" / path for path in conftest.ENGINES]
    others = set((ROOT / "tests").rglob("test_*.py")) - {Path(__file__)}
    slow = [file for file in others if "pytest.mark.slow" in file.read_text(encoding="utf-8")]
    assert slow
    assert [file for file in slow if not any(file.is_relative_to(path) for path in engines)] == []
