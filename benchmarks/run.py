"""Run one subject's benchmark: ``python -m benchmarks.run SUBJECT [options]`` from the repository's root.

Each subject is a module of this folder with a function ``main(arguments)``. Rows go to standard output or
to a file as JSON lines, progress to standard error; committed rows are in ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import importlib
import sys

SUBJECTS = {
    "abstention": "benchmarks.abstention",
    "catalog": "benchmarks.catalog",
    "catalog-table": "benchmarks.catalog_table",
    "gpu": "benchmarks.gpu",
    "host": "benchmarks.host",
    "kernels": "benchmarks.kernels",
    "kernel-costs": "benchmarks.kernel_costs",
    "kernel-tables": "benchmarks.kernel_tables",
    "interpreter-versions": "benchmarks.interpreter_versions",
    "gates": "benchmarks.gates.measure",
    "crashes": "benchmarks.crashes",
    "paper": "benchmarks.paper.measure",
    "structure": "benchmarks.structure",
    "serving": "benchmarks.serving",
    "speed": "benchmarks.speed",
    "verification": "benchmarks.verification",
    "vllm": "benchmarks.vllm",
}


def main(arguments: list[str]) -> None:
    """Run the subject named first with the rest of the arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="the subject's own; try --help after it")
    parsed = parser.parse_args(arguments)
    importlib.import_module(SUBJECTS[parsed.subject]).main(parsed.options)


if __name__ == "__main__":
    main(sys.argv[1:])
