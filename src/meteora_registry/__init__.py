"""Catalogue LoRA adapters and fuse them into verified MeteoRA bundles.

Importing this package loads nothing else: a catalog command must not pay for torch, and a bare
GPU machine that has torch and triton alone can still import ``meteora_registry.kernels``.
"""

__version__ = "0.1.0"
