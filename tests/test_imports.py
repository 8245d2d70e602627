"""The order of the folders: each imports only those above it in the design's table."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from support.source_tree import FOLDERS, PACKAGE, ROOT

# What each folder may import of the project, besides itself.
ALLOWED = {
    "schemas": set(),
    "files": {"schemas"},
    "inspection": {"schemas", "files"},
    "scores": {"schemas", "files"},
    "kernels": set(),
    "bundle": {"schemas", "files", "inspection"},
    "fuser": {"schemas", "files", "inspection", "bundle", "kernels"},
    "runtime": {"schemas", "files", "inspection", "bundle", "scores", "kernels", "fuser"},
    "serving": {"schemas", "files", "inspection", "bundle", "scores", "kernels", "fuser", "runtime"},
    "registry": {
        "schemas",
        "files",
        "inspection",
        "bundle",
        "scores",
        "kernels",
        "fuser",
        "runtime",
        "serving",
    },
    "migrations": {"registry"},
}


# The same inside `registry/`: folders, and the files beside them.
REGISTRY_ALLOWED = {
    "secrets": set(),
    "closing": set(),
    "dependencies": set(),
    "store": {"secrets"},
    "hub": {"secrets", "dependencies"},
    "home": {"secrets", "store"},
    "settings": {"secrets", "home", "workspace"},
    "catalog": {"secrets", "closing", "home", "store"},
    "workspace": {"closing", "home", "catalog", "store", "hub"},
    "workflows": {"dependencies", "home", "catalog", "store", "hub", "workspace"},
    "ci": {"workspace", "workflows"},
    "fused": {"dependencies", "closing", "hub", "workspace", "workflows"},
    "vllm_resolver": {"settings", "workspace", "workflows"},
    "face": {"dependencies", "home", "settings", "catalog", "workspace", "workflows"},
    "cli": {"dependencies", "secrets", "home", "settings", "catalog", "workspace", "workflows", "ci", "face"},
}


def modules_of(folder: str) -> list[Path]:
    """Return every Python file of a folder."""
    return sorted((ROOT / folder).rglob("*.py"))


@functools.cache
def imports_of(path: Path) -> tuple[tuple[int, str], ...]:
    """Return every module that a file imports, anywhere in it, by its full name and with the line."""
    return tuple(_imports_of(path))


def _imports_of(path: Path) -> Iterator[tuple[int, str]]:
    place = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join([*place[: -node.level], *filter(None, [module])])
            # A name may itself be a module: `from meteora_registry import fuser`.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_stands_above_it(folder: str) -> None:
    assert modules_of(folder), f"the folder {folder} is empty"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules_of(folder)
        for line, name in imports_of(path)
        if name.startswith(f"{PACKAGE}.")
        and name.split(".")[1] in ALLOWED.keys() - ALLOWED[folder] - {folder}
    ]
    assert wrong == []


@pytest.mark.parametrize("part", REGISTRY_ALLOWED)
def test_a_part_of_the_registry_imports_only_what_its_table_allows(part: str) -> None:
    files = modules_of(f"registry/{part}") or [ROOT / "registry" / f"{part}.py"]
    found = {
        (f"{path.relative_to(ROOT)}:{line}", name.split(".")[2])
        for path in files
        for line, name in imports_of(path)
        if name.startswith(f"{PACKAGE}.registry.")
    }
    allowed = REGISTRY_ALLOWED[part] | {part}
    assert sorted(each for each in found if each[1] not in allowed) == []


def test_every_part_of_the_registry_is_in_its_table() -> None:
    found = {
        path.relative_to(ROOT / "registry").parts[0].removesuffix(".py") for path in modules_of("registry")
    }
    assert found - {"__init__"} == set(REGISTRY_ALLOWED)


def test_the_table_of_the_registry_has_one_direction() -> None:
    # Raises an error that names the circle if there is one.
    TopologicalSorter(REGISTRY_ALLOWED).prepare()


def test_a_file_of_the_registry_has_a_name_of_its_own() -> None:
    """The files of `cli/` are named after commands, so that a command is found by its name."""
    names = [path.name for path in modules_of("registry") if path.parent.name != "cli"]
    twice = {name for name in names if names.count(name) > 1}
    assert twice <= {"__init__.py"}


def test_the_kernels_need_torch_and_triton_alone() -> None:
    allowed = {"torch", "triton", PACKAGE} | sys.stdlib_module_names
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules_of("kernels")
        for line, name in imports_of(path)
        if name.split(".")[0] not in allowed
    ]
    assert wrong == []
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_every_folder_of_the_package_is_in_the_table() -> None:
    assert sorted(ALLOWED) == FOLDERS


# Groups of modules that one process imports in this order: what one of them needs, those after it may have.
LEFT_OUT = {
    "package": {"meteora_registry": {"torch", "pydantic", "click", "sqlalchemy"}},
    "program": {"meteora_registry.registry.cli.main": {"torch", "pydantic", "sqlalchemy", "numpy", "rich"}},
    "core": {
        "meteora_registry.files.progress": {"torch", "pydantic", "tempfile"},
        "meteora_registry.files.staging": {"torch", "numpy", "sqlalchemy"},
        "meteora_registry.schemas.bundle": {"torch", "numpy", "sqlalchemy"},
        "meteora_registry.inspection.adapter": {"torch", "sqlalchemy", "transformers"},
        "meteora_registry.bundle.agreement": {"torch", "safetensors", "sqlalchemy", "transformers"},
        "meteora_registry.registry.vllm_resolver": {"torch", "vllm", "sqlalchemy", "click"},
        "meteora_registry.registry.fused": {"torch", "transformers", "sqlalchemy", "click"},
        "meteora_registry.registry.face": {"torch", "huggingface_hub", "sqlalchemy", "click"},
        "meteora_registry.registry.workflows.additions": {"torch", "transformers", "alembic", "click"},
        "meteora_registry.registry.workflows.fuse_plan": {"torch", "transformers", "click"},
        "meteora_registry.registry.workflows.difference": {"torch", "transformers", "click"},
        "meteora_registry.registry.workflows.compare": {"torch", "transformers", "click", "scipy"},
        "meteora_registry.registry.workflows.bundle_folder": {"torch", "transformers", "click"},
        "meteora_registry.registry.workflows.served_adapters": {"torch", "vllm", "transformers", "click"},
        "meteora_registry.registry.workflows.publication": {"torch", "transformers", "click"},
        "meteora_registry.registry.workflows.remote_bundles": {"torch", "transformers", "click"},
    },
}
IMPORT_EACH = """
import importlib, json, sys
for module, unwanted in json.loads(sys.argv[1]).items():
    importlib.import_module(module)
    for name in sorted(set(unwanted) & set(sys.modules)):
        print(module, "imports", name)
"""


@pytest.mark.parametrize("group", LEFT_OUT)
def test_importing_a_module_leaves_out_what_it_does_not_need(group: str) -> None:
    modules = json.dumps({module: sorted(unwanted) for module, unwanted in LEFT_OUT[group].items()})
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, modules], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == []


# Where an import is inside a function for another reason: Ctrl-C while it runs must not end in a traceback.
INTERRUPTIBLE = ROOT / "registry" / "cli" / "entry.py"
# And what `--version` alone needs would make every help slower.
LIGHT = ROOT / "registry" / "cli" / "main.py"
OPTIONAL = (
    "torch",
    "huggingface_hub",
    "rich",
    "starlette",
    "uvicorn",
    "sse_starlette",
    "prometheus_client",
)
TRY_IMPORTS = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        print(name)
    except Exception:
        pass
"""


def test_commands_import_inside_functions_only_what_an_install_or_environment_may_lack() -> None:
    names = sorted(
        {
            name.rpartition(".")[0]
            for path in modules_of("registry/cli")
            if path not in (INTERRUPTIBLE, LIGHT)
            for name in imports_inside_functions(path)
        }
    )
    done = subprocess.run(
        [sys.executable, "-c", TRY_IMPORTS, *names], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [], "these need none of " + ", ".join(OPTIONAL)


def imports_inside_functions(path: Path) -> Iterator[str]:
    """Yield the full names that the functions of a file import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = {
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    for line, name in imports_of(path):
        if any(first <= line <= last for first, last in lines):
            yield name
