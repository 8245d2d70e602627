"""One member of a bundle, as the manifest quotes its config and the header of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from ..inspection.config import LoraConfig
from ..inspection.header import Header, parse_header
from ..inspection.inspection import Inspection
from ..inspection.tensors import Tensors, build_inventory
from ..schemas.bundle import CONFIG_FILE
from ..schemas.document import load_json
from ..schemas.errors import BundleRefused
from ..schemas.inventory import Inventory, ModuleFactors
from ..schemas.manifest import ManifestMember


class QuotedMember:
    """A member's own adapter without its files: header, tensors and modules, computed when first asked for.

    The quotation is not checked here; verification compares it with the member's own files.
    """

    def __init__(self, entry: ManifestMember) -> None:
        self.entry = entry

    @property
    def name(self) -> str:
        """What the bundle calls the member."""
        return self.entry.name

    @property
    def start(self) -> bytes:
        """The first bytes of the member's weights file: the length of its header, and the header."""
        text = self.entry.weights_header.encode("utf-8")
        return len(text).to_bytes(8, "little") + text

    @cached_property
    def header(self) -> Header:
        """The header of the member's weights file.

        Raises:
            AdapterRefused: it is not that of a safetensors file of the recorded size.
        """
        return parse_header(self.start, self.entry.weights_bytes)

    @cached_property
    def config(self) -> LoraConfig:
        """The member's own config.

        Raises:
            InvalidDocument: it is not JSON.
            BundleRefused: it is not an object.
        """
        value = load_json(self.entry.config_text.encode("utf-8"), what=CONFIG_FILE)
        if not isinstance(value, dict):
            raise BundleRefused(
                f"the config of member `{self.name}` is a {type(value).__name__}, expected an object"
            )
        return LoraConfig(value)

    @cached_property
    def tensors(self) -> Tensors:
        """The member's tensors, sorted into factors and others.

        Raises:
            MeteoraError: its config or its header cannot be read.
        """
        return Tensors.sort(self.header, self.config)

    @cached_property
    def inventory(self) -> Inventory:
        """The member's modules with ranks, scalings and shapes.

        Raises:
            MeteoraError: they are not those of an adapter that can be fused.
        """
        inventory = build_inventory(self.tensors)
        if inventory is None:
            raise BundleRefused(
                f"ranks and scalings of member `{self.name}` cannot be worked out from its config and header"
            )
        return inventory

    @cached_property
    def modules(self) -> dict[str, ModuleFactors]:
        """The member's modules by what the bundle calls them."""
        return modules_by_path(self.inventory, self.entry.renamed_modules)

    @cached_property
    def inspection(self) -> Inspection:
        """What an inspection of the member's own files would find, without its findings.

        Raises:
            MeteoraError: its config or its header cannot be read.
        """
        return Inspection(
            config_text=self.entry.config_text,
            weights_sha256=self.entry.weights_sha256,
            header=self.header,
            declared_base=self.entry.base,
            license=self.entry.license,
            inventory=build_inventory(self.tensors),
        )


def modules_by_path(inventory: Inventory, renamed: Mapping[str, str]) -> dict[str, ModuleFactors]:
    """Return an adapter's modules by what a bundle calls them; ``renamed`` has the new names of old paths."""
    return {renamed.get(module.path, module.path): module for module in inventory.modules}
