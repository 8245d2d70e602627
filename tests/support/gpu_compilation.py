"""Compile Triton kernels for a GPU that is not there, with the very arguments the launches pass.

A `Recorder` replaces a kernel and keeps each call; `compiled` turns one call into a cubin, as the
runtime would, and reports what it needs of the machine.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Call:
    """One launch: the kernel, its arguments by name, its options, its grid."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    grid: tuple[int, ...]

    @property
    def variant(self) -> tuple[Any, ...]:
        """What of the call makes another binary."""
        constants = {p.name: self.arguments[p.name] for p in self.kernel.params if p.is_constexpr}
        types = [
            self.arguments[p.name].dtype for p in self.kernel.params if is_tensor(self.arguments[p.name])
        ]
        return self.kernel.fn.__name__, tuple(constants.items()), tuple(types)


class Recorder:
    """Takes a kernel's place and appends its launches to `calls`."""

    def __init__(self, kernel: Any, calls: list[Call]) -> None:
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*positional: Any, **named: Any) -> None:
            options = {name: named.pop(name) for name in OPTIONS}
            names = [param.name for param in self.kernel.params]
            arguments = dict(zip(names, positional, strict=False)) | named
            assert list(arguments) == names
            assert all(extent > 0 for extent in grid)
            self.calls.append(Call(self.kernel, arguments, options, grid))

        return launch


@dataclass(frozen=True)
class Binary:
    """The resources of a compiled kernel for each block: shared memory, and spilled registers, in bytes."""

    shared_bytes: int
    stack_bytes: int


def is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def compiled(call: Call, capability: int, folder: Path) -> Binary:
    """Return what the binary of `call` for an NVIDIA GPU of that capability needs."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, param in enumerate(call.kernel.params):
        value = call.arguments[param.name]
        one = isinstance(value, int) and value == 1 and not param.do_not_specialize
        if param.is_constexpr or one:
            signature[param.name], constants[(index,)] = "constexpr", value
            continue
        signature[param.name] = type_of(value)
        if is_tensor(value) or (isinstance(value, int) and value % 16 == 0 and not param.do_not_specialize):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(call.kernel, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=call.options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    return Binary(kernel.metadata.shared, stack_bytes(cubin))


def type_of(value: Any) -> str:
    if is_tensor(value):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def stack_bytes(cubin: Path) -> int:
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
    found = re.search(r"STACK:(\d+)", usage.stdout)
    assert found, usage.stdout
    return int(found.group(1))
