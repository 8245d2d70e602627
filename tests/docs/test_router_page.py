"""The router's part of the page about vLLM: its deployments, and the sizes that it states."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from meteora_registry.registry.cli.main import cli
from meteora_registry.registry.cli.serve import command as serve
from support.source_tree import ROOT

DEPLOY = ROOT / "examples" / "deploy"
PAGE = ROOT / "docs" / "vllm.md"
# Llama-3.1-8B: inputs and outputs of q, k, v, o, gate, up and down, and its layers.
MODULES = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), *[(4096, 14336)] * 2, (14336, 4096)]
LAYERS = 32
BYTES = 2


def row(rank: int) -> str:
    """Return the line of the page's table for a rank."""
    one = rank * LAYERS * sum(map(sum, MODULES)) * BYTES
    several = [f"{count * one / 1e9:.{digits}f} GB" for count, digits in ((4, 2), (8, 2), (64, 1))]
    return f"| {' | '.join([str(rank), f'{one / 1e6:.0f} MB', *several])} |"


@pytest.mark.parametrize("rank", [16, 64, 256])
def test_sizes_of_the_page_follow_from_the_shapes(rank: int) -> None:
    assert row(rank) in PAGE.read_text(encoding="utf-8").splitlines()


def test_compose_file_follows_its_schema() -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [program, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def documents() -> dict[str, dict[str, Any]]:
    """Return the parts of the sketch for Kubernetes by kind and name."""
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    return {f"{each['kind']} {each['metadata']['name']}": each for each in found}


def test_parts_of_the_kubernetes_sketch_fit_together() -> None:
    found = documents()
    assert set(found) == {"StatefulSet engine", "Service engine", "Deployment router", "Service router"}
    for name in ("StatefulSet engine", "Deployment router"):
        spec = found[name]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels
        assert found[f"Service {labels['app']}"]["spec"]["selector"] == labels
        pod = spec["template"]["spec"]
        mounted = {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def commands() -> dict[str, list[str]]:
    """Return the arguments of the routers in both deployments."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    pod = documents()["Deployment router"]["spec"]["template"]["spec"]
    return {
        "compose": compose["services"]["router"]["command"],
        "kubernetes": pod["containers"][0]["args"],
    }


@pytest.mark.parametrize("name", ["compose", "kubernetes"])
def test_routers_of_the_deployments_have_options_of_serve(name: str) -> None:
    program, *arguments = commands()[name]
    assert program == "serve"
    # Click keeps a command's option for help by the names of the first context that asks for it.
    with click.Context(serve, **cli.context_settings) as context:
        options, rest, _ = serve.make_parser(context).parse_args(arguments)
    assert rest == []
    assert len(options["engine_urls"]) == 2


def test_members_of_both_deployments_are_those_of_the_engines_of_the_page() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    sketch = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    modules = [sorted(set(re.findall(r"\w+=/models/bundle/experts/\w+", each))) for each in (text, sketch)]
    assert (
        modules[0] == modules[1] == [f"{name}=/models/bundle/experts/{name}" for name in ("legal", "medical")]
    )
