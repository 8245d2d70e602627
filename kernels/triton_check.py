"""The Triton kernels run for verification: on a GPU if the machine has one, else in Triton's interpreter.

The interpreter must be chosen before triton is first imported and computes with numpy on the CPU, so it
runs in a process of its own: ``python -m meteora_registry.kernels.triton_check`` reads one request from
standard input and writes one reply. Both are a line of JSON that describes the tensors, then their bytes, one
after another; nothing is pickled. It costs a fraction of a millisecond per operation and tile whatever
the sizes, so that a sample of a few tokens against whole factors of a large model takes seconds, not hours;
what it cannot show are races, alignment and the limits of a real GPU. Shapes are those of ``layout.py``.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .layout import layout_of
from .operands import TRITON_DTYPES, check_operands
from .operators import has_triton
from .routed_lora import flat, routed_lora
from .routing import Routing
from .slots import Slots

DTYPES = {str(dtype): dtype for dtype in (*TRITON_DTYPES, torch.int64)}
TENSORS = ("x", "A", "Bt", "selection", "weights")
MODULE = "meteora_registry.kernels.triton_check"
MAX_HEADER_BYTES = 1 << 20


class TritonUnavailableError(RuntimeError):
    """Triton cannot run here at all; the message names what is missing."""


class TritonRunError(RuntimeError):
    """Triton ran and failed, or took too long; the message has the end of its error output."""


@dataclass(frozen=True, slots=True)
class TritonRun:
    """The kernels' output [..., D], on the CPU, and where they ran: a GPU's name or ``interpreter``."""

    output: Tensor
    device: str


def run_triton(
    x: Tensor,
    A: Tensor,
    Bt: Tensor,
    offsets: Sequence[int],
    scaling: Sequence[float],
    selection: Tensor,
    weights: Tensor,
    *,
    timeout_seconds: float = 300.0,
) -> TritonRun:
    """Return what the Triton kernels compute for the arguments of `routed_lora`, CPU tensors.

    Without a GPU keep the sample small: 16 tokens of a linear 4096 x 4096 with 28 adapters take about three
    seconds.

    Args:
        x: fp32, bf16 or fp16 [..., h], as `routed_lora`.
        A: [N, h].
        Bt: [N, D].
        offsets: L + 1 row offsets.
        scaling: L factors.
        selection: int64 [..., k].
        weights: float32 [..., k].
        timeout_seconds: for the interpreter's process.

    Raises:
        ValueError: if the operands do not fit together.
        TritonUnavailableError: if this machine has neither a GPU nor an interpreter.
        TritonRunError: if the interpreter fails or runs out of time.
    """
    layout = layout_of(offsets, scaling)
    check_operands(x, A, Bt, offsets, scaling, selection, weights)
    if x.dtype not in TRITON_DTYPES:
        expected = ", ".join(map(str, TRITON_DTYPES))
        raise ValueError(f"`x` is {x.dtype}, expected one of {expected}; the Triton kernels have no other")
    tensors = {"x": flat(x), "A": A, "Bt": Bt, "selection": flat(selection), "weights": flat(weights)}
    if selection.numel():
        # Counting checks the selection, which the kernels do not.
        _ = Slots(layout, Routing(tensors["selection"], tensors["weights"])).counts
    if torch.cuda.is_available() and has_triton(torch.device("cuda", torch.cuda.current_device())):
        run = _run_on_gpu(tensors, offsets, scaling)
    else:
        run = _run_in_interpreter(tensors, offsets, scaling, timeout_seconds)
    return TritonRun(run.output.view(*x.shape[:-1], Bt.shape[1]), run.device)


def _run_on_gpu(tensors: dict[str, Tensor], offsets: Sequence[int], scaling: Sequence[float]) -> TritonRun:
    there = {name: tensor.to("cuda") for name, tensor in tensors.items()}
    with torch.no_grad():
        output = routed_lora(offsets=offsets, scaling=scaling, **there)
    return TritonRun(output.cpu(), torch.cuda.get_device_name())


def _run_in_interpreter(
    tensors: dict[str, Tensor], offsets: Sequence[int], scaling: Sequence[float], timeout_seconds: float
) -> TritonRun:
    for package in ("triton", "numpy"):
        if importlib.util.find_spec(package) is None:
            raise TritonUnavailableError(f"`{package}` is not installed and there is no GPU, expected either")
    _check_versions(version("triton"), version("numpy"))
    request = encode(tensors, {"offsets": list(offsets), "scaling": list(scaling)})
    return TritonRun(decode(_ask_interpreter(request, timeout_seconds))[0]["output"], "interpreter")


def _check_versions(triton: str, numpy: str) -> None:
    """Refuse versions of which it was measured that they do not work together.

    Raises:
        TritonUnavailableError: naming both.
    """

    def release(of: str) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", of)[:2])

    if release(triton) < (3, 7) and release(numpy) >= (2, 4):
        raise TritonUnavailableError(
            f"triton {triton} computes nothing without a GPU beside numpy {numpy}, expected triton 3.7 or "
            "newer, or numpy older than 2.4"
        )


def _ask_interpreter(request: bytes, timeout_seconds: float) -> bytes:
    """Return the reply of a process of its own."""
    try:
        # S603: the command is this very module, run by this very Python; nothing in it comes from outside.
        child = subprocess.run(  # noqa: S603
            [sys.executable, "-P", "-m", MODULE],
            input=request,
            capture_output=True,
            timeout=timeout_seconds,
            check=False,
            env={**os.environ, "TRITON_INTERPRET": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise TritonRunError(f"the interpreter was still running after {timeout_seconds} seconds") from error
    if child.returncode != 0:
        reported = child.stderr.decode(errors="replace")[-2000:]
        raise TritonRunError(f"the interpreter left with status {child.returncode}: {reported}")
    return child.stdout


def encode(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> bytes:
    """Return a message: a line of JSON with values, names, dtypes and shapes, then the tensors' bytes."""
    described = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    header = json.dumps({"values": values, "tensors": described}).encode() + b"\n"
    return header + b"".join(_bytes_of(tensor) for tensor in tensors.values())


def decode(message: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and values of a message.

    Raises:
        ValueError: if the message is not what its first line describes.
    """
    line, found, body = message.partition(b"\n")
    if not found or len(line) > MAX_HEADER_BYTES:
        raise ValueError(f"the message has no header line of at most {MAX_HEADER_BYTES} bytes")
    header = json.loads(line)
    tensors, start = {}, 0
    for name, (dtype, shape) in header["tensors"].items():
        kind = DTYPES[dtype]
        end = start + math.prod(shape) * kind.itemsize
        if end > len(body):
            raise ValueError(f"the message ends within `{name}`, expected {end} bytes, found {len(body)}")
        raw = bytearray(body[start:end])
        tensors[name] = (
            torch.frombuffer(raw, dtype=kind).view(shape) if raw else torch.empty(shape, dtype=kind)
        )
        start = end
    if start != len(body):
        raise ValueError(f"the message has {len(body)} bytes of tensors, expected {start}")
    return tensors, header["values"]


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    raw = bytearray(flat.numel())
    if raw:
        torch.frombuffer(raw, dtype=torch.uint8).copy_(flat)
    return bytes(raw)


def answer(request: BinaryIO, reply: BinaryIO) -> None:
    """Read one request, run the kernels and write the reply: all that the child process does."""
    from . import gpu_products

    tensors, values = decode(request.read())
    layout = layout_of(values["offsets"], values["scaling"])
    routing = Routing(tensors["selection"], tensors["weights"])
    x, A, Bt = (tensors[name] for name in ("x", "A", "Bt"))
    if gpu_products.serves(x, layout):
        output = gpu_products.forward(x, A, Bt, layout, routing)
    else:
        output = x.new_zeros(x.shape[0], Bt.shape[1])
    reply.write(encode({"output": output}, {}))


if __name__ == "__main__":
    channel = sys.stdout.buffer
    # Output of a library must not mix with the reply.
    sys.stdout = sys.stderr
    answer(sys.stdin.buffer, channel)
