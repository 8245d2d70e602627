"""``--version``: the versions of this program and of what decides how a bundle is read and computed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

import meteora_registry

_PACKAGES = ("torch", "triton", "transformers", "peft", "safetensors", "huggingface-hub", "sqlalchemy")


def print_versions() -> None:
    """Print one version a line."""
    click.echo(f"meteora-registry {meteora_registry.__version__}")
    click.echo(f"python {platform.python_version()}")
    for package in _PACKAGES:
        click.echo(f"{package} {_version_of(package)}")


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
