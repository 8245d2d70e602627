"""The shape of the package, measured: sizes, public names, what parses how often, what imports without torch.

``python -m benchmarks.run structure --label before --tree DIR`` prints one row for a checkout, this one by
default, so that a change of structure is judged by the same measure before and after. Times are of the
process's processor, as ratios to ``python -c "import click"`` of the same minute.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_PACKAGED = {"tests", "benchmarks", "examples", "docs", "src"}
SHORT_LINES = 50
MEMBERS = (2, 4, 8)
CALLS = 5

# Registers the members of a bundle that another machine pushed, and counts how often an inventory is built.
COUNT_INVENTORIES = """
import sys
from pathlib import Path
import meteora_registry.inspection.tensors as tensors
calls, real = [], tensors.build_inventory
def counted(*arguments):
    calls.append(1)
    return real(*arguments)
tensors.build_inventory = counted
import meteora_registry.fuser.extraction, meteora_registry.registry.workflows.hub_bundles as pull
for module in list(sys.modules.values()):
    if getattr(module, "build_inventory", None) is real:
        module.build_inventory = counted
from meteora_registry.registry.face import Registry
with Registry(sys.argv[2]).open() as registry:
    calls.clear()
    # Called so in older checkouts.
    register = getattr(pull, "_register_members", None) or pull.register_members
    # Where the bundle is from, which older checkouts did not ask for.
    claim = ["org/bundle@" + "0" * 40][: register.__code__.co_argcount - 3]
    register(registry, Path(sys.argv[1]), "pulled", *claim)
print(len(calls))
"""


def main(arguments: list[str]) -> None:
    """Measure one checkout and print its row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run structure", description=__doc__)
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout")
    parser.add_argument("--label", default="now", help="what the row is called")
    parser.add_argument("--suite", action="store_true", help="also time `make test`, on an idle machine")
    options = parser.parse_args(arguments)
    tree = options.tree.resolve()
    row = {"label": options.label, **sizes(tree), **imports_without_torch(tree), **times(tree)}
    row["inventories"] = {count: inventories(tree, count) for count in MEMBERS}
    if options.suite:
        row |= suite(tree)
    print(json.dumps(row))


def packaged(tree: Path) -> list[Path]:
    """Return the Python files of the package."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=tree, capture_output=True, text=True, check=True
    ).stdout.split()
    return [tree / name for name in listed if Path(name).parts[0] not in NOT_PACKAGED]


def sizes(tree: Path) -> dict[str, object]:
    """Return the numbers of files, lines, public names and parameters that are never read."""
    files = packaged(tree)
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in files]
    parsed = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    names = Counter(path.name for path in files if path.name != "__init__.py")
    return {
        "files": len(files),
        "lines": sum(lines),
        "lines_per_file": round(sum(lines) / len(files)),
        "files_of_50_lines_or_fewer": sum(count <= SHORT_LINES for count in lines),
        "file_names_of_several_files": sum(count > 1 for count in names.values()),
        "public_names": sum(len(list(public_names(tree))) for tree in parsed),
        "imports_inside_functions": sum(map(inner_imports, parsed)),
        "parameters_never_read": sum(len(list(unread_parameters(tree))) for tree in parsed),
    }


def public_names(module: ast.Module) -> Iterator[str]:
    """Yield the functions, classes and constants that a module defines without a leading underscore."""
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


def inner_imports(module: ast.Module) -> int:
    """Return how many imports stand inside functions."""
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    inside = {
        node
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return len(inside)


def unread_parameters(module: ast.Module) -> Iterator[str]:
    """Yield the parameters that their function never reads; stubs and overrides are counted, too."""
    for function in ast.walk(module):
        if isinstance(function, ast.FunctionDef):
            read = {
                node.id for part in function.body for node in ast.walk(part) if isinstance(node, ast.Name)
            }
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            yield from (a.arg for a in arguments if a.arg not in {"self", "cls"} | read)


def imports_without_torch(tree: Path) -> dict[str, object]:
    """Return how many modules of the package import where torch and what needs it are blocked."""
    names = [
        ".".join(["meteora_registry", *path.relative_to(tree).with_suffix("").parts]).removesuffix(
            ".__init__"
        )
        for path in packaged(tree)
        if path.relative_to(tree).parts[:2] != ("migrations", "env.py") and "versions" not in path.parts
    ]
    script = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'triton', 'safetensors', 'peft', 'transformers')))\n"
        "found = 0\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        importlib.import_module(name)\n        found += 1\n"
        "    except ImportError:\n        pass\n"
        "print(found)\n"
    )
    found = run(tree, "-c", script, *names)
    return {"modules": len(names), "modules_importable_without_torch": int(found)}


def times(tree: Path) -> dict[str, object]:
    """Return the processor time of `--help` and `list`, in times of importing click alone."""
    with tempfile.TemporaryDirectory() as home:
        program = "from meteora_registry.registry.cli.entry import main; main()"
        commands = {
            "click": ("-c", "import click"),
            "help": ("-c", program, "--help"),
            "list": ("-c", program, "--home", home, "list"),
        }
        least = {
            name: min(processor_seconds(tree, *each) for _ in range(CALLS)) for name, each in commands.items()
        }
    return {f"{name}_times_click": round(least[name] / least["click"], 1) for name in ("help", "list")}


def processor_seconds(tree: Path, *arguments: str) -> float:
    """Return the processor time of one Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(tree, *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def inventories(tree: Path, members: int) -> int:
    """Return how often an inventory is built while the members of a bundle are registered."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.members import fuse, read_members
    from support.small_adapters import make_adapter

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        adapters = {
            f"member-{index}": make_adapter(folder / f"member-{index}", seed=index)
            for index in range(members)
        }
        bundle = fuse(read_members(adapters), folder / "bundle")
        return int(run(tree, "-c", COUNT_INVENTORIES, str(bundle), str(folder / "home")))


def suite(tree: Path) -> dict[str, object]:
    """Return the wall time of `make test`, its last line, and the machine's load before it began."""
    load = os.getloadavg()[0]
    start = time.monotonic()
    done = subprocess.run(["make", "test"], cwd=tree, capture_output=True, text=True, check=False)
    minutes = (time.monotonic() - start) / 60
    (*_, summary) = done.stdout.strip().splitlines() or [""]
    return {"suite_minutes": round(minutes, 1), "suite": summary.strip("= "), "load_before": round(load, 1)}


def run(tree: Path, *arguments: str) -> str:
    """Run this Python with a checkout's package first on the path, and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=tree, capture_output=True, text=True, check=True
    ).stdout
