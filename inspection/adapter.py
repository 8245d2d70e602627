"""The inspection of one adapter: everything that its files say, and everything that is wrong with them.

Whatever is wrong inside an adapter is a finding; an exception means only that its files cannot be
read. Each stage judges its part and hands it on, so one run reports everything that can be known.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..files.reading import open_folder, open_regular, read_start
from ..schemas.digest import Digest
from ..schemas.document import canonical_json
from ..schemas.errors import AdapterRefused, SourceUnreadable
from ..schemas.facts import AdapterFacts
from ..schemas.finding import Finding
from ..schemas.inventory import Inventory
from .card import read_license
from .collector import collector_held
from .config import Config, LoraConfig, Resolution
from .config_file import MAX_CONFIG_BYTES, ConfigFile
from .folder import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, Folder, Kind
from .header import Header, read_header_of
from .inspection import Inspection
from .rules import all_rules as _all_rules  # noqa: F401 - registers every rule
from .rules.rule import examine, order
from .scan import Scan, scan_file
from .tensors import Tensors, build_inventory
from .weights import Weights, find_overflows

__all__ = ["Inspection", "inspect_adapter", "inspect_config", "inspect_files"]


def inspect_adapter(folder: Path, *, scan_weights: bool = True, follow_links: bool = False) -> Inspection:
    """Inspect the adapter in a folder.

    Of links, those in a snapshot of a Hub cache are followed, to the files of the same repository.

    Args:
        folder: where ``adapter_config.json`` and ``adapter_model.safetensors`` lie.
        scan_weights: whether to read the weights, for their digest and their numbers, or only the header.
        follow_links: whether a config and weights that are links to any file are read.

    Raises:
        SourceUnreadable: the folder, or a file in it, cannot be read, or is a link that is not followed.
    """
    with open_folder(folder, hint="expected a folder with an adapter") as opened, ExitStack() as files:
        listing = Folder.read(opened, folder, follow_links=follow_links)
        _refuse_links(folder, listing)
        config = None
        if listing.has_file(CONFIG_FILE):
            config = read_start(listing.place(CONFIG_FILE), MAX_CONFIG_BYTES, folder=opened)
        weights = None
        if listing.has_file(WEIGHTS_FILE):
            weights = files.enter_context(open_regular(listing.place(WEIGHTS_FILE), folder=opened))
        card = read_license(listing.place(CARD_FILE), opened) if listing.has_file(CARD_FILE) else None
        return _inspect(config, weights, card, examine(listing), scan=scan_weights)


def _refuse_links(folder: Path, listing: Folder) -> None:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if listing.entries.get(name) is Kind.LINK:
            raise SourceUnreadable(
                f"`{folder / name}` is a symbolic link, which is not followed: it may lead anywhere",
                hint="put the file in its place, or allow it with `--follow-links`",
            )


def inspect_files(config: Path, weights: Path, *, scan_weights: bool = True) -> Inspection:
    """Inspect an adapter given by two files of any name, such as those of a content store.

    Raises:
        SourceUnreadable: one of them cannot be read.
    """
    with open_regular(weights, follows_links=True) as file:
        return _inspect(_read_config(config), file, None, (), scan=scan_weights)


def inspect_config(config: Path) -> Inspection:
    """Inspect a config alone, as far as an adapter can be judged without its weights.

    Raises:
        SourceUnreadable: it cannot be read.
    """
    return _inspect(_read_config(config), None, None, (), scan=False)


def _read_config(path: Path) -> bytes:
    return read_start(path, MAX_CONFIG_BYTES, follows_links=True)


def _inspect(
    config_data: bytes | None,
    weights_file: BinaryIO | None,
    license_name: str | None,
    findings: tuple[Finding, ...],
    *,
    scan: bool,
) -> Inspection:
    with collector_held():
        return _judge(config_data, weights_file, license_name, findings, scan=scan)


def _judge(
    config_data: bytes | None,
    weights_file: BinaryIO | None,
    license_name: str | None,
    findings: tuple[Finding, ...],
    *,
    scan: bool,
) -> Inspection:
    config_file = None if config_data is None else ConfigFile.parse(config_data)
    config = _config_of(config_file, has_tensors=weights_file is not None)
    if config_file is not None:
        findings += examine(config_file)
    if config is not None:
        findings += _examine_config(config)
    weights = _Readings() if weights_file is None else _read_weights(weights_file, config, scan=scan)
    return Inspection(
        config_text=_text_of(config_file),
        canonical_config_sha256=_canonical_digest(config) if config else None,
        header=weights.header,
        weights_sha256=weights.scan.sha256 if weights.scan else None,
        declared_base=config.text("base_model_name_or_path") if config else None,
        license=license_name,
        inventory=weights.inventory,
        facts=_measure(config_file, config, weights, license_name),
        findings=order(findings + weights.findings),
    )


def _measure(
    file: ConfigFile | None, config: Config | None, weights: _Readings, license_name: str | None
) -> AdapterFacts | None:
    """Return the facts of an adapter; None unless its config is an object and its weights were scanned."""
    if file is None or config is None or weights.header is None or weights.scan is None:
        return None
    inventory = weights.inventory
    return AdapterFacts(
        weights_bytes=weights.header.file_bytes,
        license=license_name,
        max_rank=inventory.max_rank if inventory else None,
        dtypes=tuple(map(str, inventory.dtypes)) if inventory else (),
        weights_sha256=weights.scan.sha256,
        config_sha256=Digest.of_bytes(file.data),
        canonical_config_sha256=_canonical_digest(config),
        declared_base=config.text("base_model_name_or_path"),
        base_revision=config.text("revision"),
        task_type=config.text("task_type"),
        peft_version=config.text("peft_version"),
        shape_signature=inventory.shape_signature if inventory else None,
        rank=inventory.rank if inventory else None,
        scaling=inventory.scaling if inventory else None,
    )


def _canonical_digest(config: Config) -> Digest:
    return Digest.of_bytes(canonical_json(config.value))


@dataclass(frozen=True, slots=True)
class _Readings:
    """The readings of one weights file."""

    header: Header | None = None
    scan: Scan | None = None
    inventory: Inventory | None = None
    findings: tuple[Finding, ...] = ()


def _config_of(file: ConfigFile | None, *, has_tensors: bool) -> Config | None:
    if file is None or file.problem is not None or not isinstance(file.value, dict):
        return None
    config = Config(file.value)
    return LoraConfig(file.value, has_tensors=has_tensors) if config.is_lora else config


def _examine_config(config: Config) -> tuple[Finding, ...]:
    findings = examine(Config(config.value))
    return findings + examine(config) if isinstance(config, LoraConfig) else findings


def _text_of(file: ConfigFile | None) -> str | None:
    if file is None or file.is_too_large:
        return None
    try:
        return file.data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _read_weights(file: BinaryIO, config: Config | None, *, scan: bool) -> _Readings:
    try:
        header = read_header_of(file, WEIGHTS_FILE)
    except AdapterRefused as error:
        return _Readings(findings=error.findings)
    # Without a readable config the tensors are still sorted, so that one run reports everything.
    judged = LoraConfig({}) if config is None else config
    if isinstance(judged, LoraConfig):
        tensors = Tensors.sort(header, judged)
        findings = examine(tensors)
    else:
        # The tensors of another method follow other rules; only their numbers are looked at.
        tensors = Tensors(judged, header, (), {}, Resolution({}, {}, frozenset(), is_complete=True))
        findings = ()
    inventory = build_inventory(tensors)
    if not scan:
        return _Readings(header, None, inventory, findings)
    scanned = scan_file(file, header)
    overflows = find_overflows(file, tensors, inventory, scanned) if inventory else ()
    return _Readings(header, scanned, inventory, findings + examine(Weights(tensors, scanned, overflows)))
