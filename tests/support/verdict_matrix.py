"""One row of the verdict matrix: what PEFT makes of an adapter, beside the verdict on it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from meteora_registry import runtime
from meteora_registry.fuser.bundle_writer import write_bundle
from meteora_registry.fuser.fuse_member import Member
from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.registry.workflows.base_facts import linear_modules, read_base_facts
from meteora_registry.registry.workflows.validation import ValidateOptions, validate
from meteora_registry.schemas.errors import MeteoraError
from meteora_registry.schemas.finding import Finding, Severity
from meteora_registry.schemas.report import Outcome, Purpose

from .members import plan_of, read_member
from .verdict_files import FileCase
from .verdict_kinds import Kind, answer, base_answer, saved_base
from .verdict_options import Case

# What PEFT makes of an adapter.
EFFECT = "as trained"
BASE = "the base's output"
OTHER = "another output"
UNMADE = "cannot be made"
ACCEPTED = str(Outcome.ACCEPTED)
MAX_DIFFERENCE = 1e-5


@dataclass(frozen=True)
class Row:
    """One cell of the matrix.

    ``peft`` is what PEFT makes of the files, ``alone`` the verdict without a base and ``based`` the one
    with it, each with the codes that refuse; ``member`` is what a forced member of a bundle gives.
    """

    case: str
    kind: str
    peft: str
    alone: str = ""
    alone_codes: str = ""
    based: str = ""
    based_codes: str = ""
    member: str = ""

    @property
    def name(self) -> str:
        """The row's name in a test's report."""
        return f"{self.kind}: {self.case}"

    @property
    def breaches(self) -> tuple[str, ...]:
        """What the law forbids and this row does."""
        return tuple(_breaches(self))

    def cells(self) -> dict[str, str]:
        """Return the row as it is written."""
        return asdict(self) | {"disagrees": "yes" if self.breaches else ""}


def _breaches(row: Row) -> list[str]:
    if row.peft.startswith(UNMADE):
        return []
    found = []
    judged = (("without", row.alone, row.alone_codes), ("with", row.based, row.based_codes))
    for where, verdict, codes in judged:
        if row.peft == EFFECT and not verdict.startswith("sound"):
            found.append(f"PEFT loads it with effect, and {where} the base it is `{verdict}` ({codes})")
    # The files alone need not show what the base lacks, so this half of the law is asked with the base. An
    # initialisation that PEFT cannot repeat exactly loads with another output, and must not be fused.
    forbidden = ("sound, fusable",) if row.peft == OTHER else ("sound, fusable", "sound, not fusable")
    if row.peft != EFFECT and row.based in forbidden:
        found.append(f"PEFT: {row.peft}; with the base it is `{row.based}`")
    if row.member not in ("", EFFECT):
        found.append(f"a bundle's member gives {row.member}")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore what PEFT and transformers warn of while they load what the matrix gives them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def made_by_peft(case: Case, kind: Kind, folder: Path) -> Row:
    """Have PEFT make, save and load the adapter of a case, and set the verdicts beside it."""
    options = case.options_for(kind)
    if options is None:
        return Row(case.name, kind.name, UNMADE)
    with _quiet():
        try:
            trained = train(case, kind, options, folder)
        except Exception as error:  # noqa: BLE001 - whatever PEFT raises, it does not make this adapter
            return Row(case.name, kind.name, f"{UNMADE} ({type(error).__name__})")
        return judged(Row(case.name, kind.name, outcome_of(kind, folder, trained)), kind, folder, trained)


def train(case: Case, kind: Kind, options: dict[str, object], folder: Path) -> Tensor:
    """Make an adapter whose every trained number is random, save it, and return what it answers."""
    model = kind.model()
    options = {"base_model_name_or_path": "org/base"} | options
    base = options.pop("base_model_name_or_path")
    config = LoraConfig(**options)  # type: ignore[arg-type]  # the options of any case
    if case.prepare:
        case.prepare(model, config, kind)
    torch.manual_seed(1)
    trained = get_peft_model(model, config)
    config.base_model_name_or_path = base  # type: ignore[assignment]
    initial = folder.with_name(f"{folder.name}-initial")
    if case.is_converted:
        _save(trained, initial)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            noise = torch.randn(parameter.shape)
            if ".lora_A." in name or ".lora_B." in name or "lora_embedding" in name:
                parameter.copy_(noise * 0.3)
            elif parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(noise * 0.1)
    output = answer(trained, kind)
    _save(
        trained, folder, **{"path_initial_model_for_weight_conversion": initial} if case.is_converted else {}
    )
    return output


def _save(model: PeftModel, folder: Path, **options: object) -> None:
    """Save an adapter as PEFT does, without the card, whose template takes longer than everything else."""
    model.create_or_update_model_card = lambda _: None
    model.save_pretrained(folder, **options)


def outcome_of(kind: Kind, folder: Path, trained: Tensor | None) -> str:
    """Return what PEFT makes of a saved adapter: one of the constants above, or the exception's name."""
    base = base_answer(kind)
    try:
        loaded = answer(PeftModel.from_pretrained(kind.model(), folder), kind)
    except Exception as error:  # noqa: BLE001 - whatever PEFT raises is what it makes of the adapter
        return type(error).__name__
    if alike(loaded, base):
        return BASE
    return EFFECT if trained is not None and alike(loaded, trained) else OTHER


def judged(row: Row, kind: Kind, folder: Path, trained: Tensor) -> Row:
    """Complete a row with the verdicts, and with the forced member of a bundle where there can be one."""
    inspection = inspect_adapter(folder)
    verdict = inspection.verdict
    based, findings = _judge_with_base(kind, folder)
    fusable = verdict.fusable and based == str(verdict)
    return Row(
        row.case,
        row.kind,
        row.peft,
        alone=str(verdict),
        alone_codes=_codes(inspection.findings),
        based=based,
        based_codes=_codes(findings),
        member=member_outcome(kind, folder, trained) if fusable else "",
    )


def _judge_with_base(kind: Kind, folder: Path) -> tuple[str, tuple[Finding, ...]]:
    base = saved_base(kind, folder.parent)
    try:
        (report,) = validate([folder], ValidateOptions(base=str(base))).adapters
    except MeteoraError as error:
        return f"no verdict: {type(error).__name__}", ()
    return str(report.verdict), report.findings


def member_outcome(kind: Kind, folder: Path, expected: Tensor) -> str:
    """Return what the adapter gives as the forced member of a bundle."""
    bundle = folder.with_name(f"{folder.name}-bundle")
    try:
        _write_bundle(read_member(folder, "member", base="org/base"), saved_base(kind, folder.parent), bundle)
        model = PeftModel.from_pretrained(kind.model(), bundle)
        with runtime.force_adapter(model, "member"):
            found = answer(model, kind)
    except Exception as error:  # noqa: BLE001 - the table names whatever it raises
        return type(error).__name__
    finally:
        shutil.rmtree(bundle, ignore_errors=True)
    return EFFECT if alike(found, expected) else OTHER


def _write_bundle(member: Member, base: Path, bundle: Path) -> None:
    paths = [module.path for module in member.inventory.modules]
    modules = linear_modules(read_base_facts(base, "base", paths, member.trained_on))
    bundle.mkdir()
    write_bundle(plan_of([member], base_modules=modules), [member], bundle)


def alike(found: Tensor, expected: Tensor) -> bool:
    """Return whether two answers are the same up to the order of additions."""
    if found.shape != expected.shape:
        return False
    return float((found - expected).abs().max() / expected.abs().max()) <= MAX_DIFFERENCE


def _codes(findings: tuple[Finding, ...]) -> str:
    return " ".join(sorted({each.code for each in findings if each.severity is Severity.REFUSE}))


@dataclass(frozen=True)
class FileRow:
    """The answers of PEFT and of ``validate`` to files that PEFT did not save.

    ``alone`` and ``based`` are the outcomes of ``validate --for use`` without and with the base,
    ``fuse`` that of ``--for fuse`` with it; ``member`` is what the forced member of a bundle gives.
    """

    case: str
    kind: str
    peft: str
    alone: str
    alone_codes: str
    based: str
    based_codes: str
    fuse: str
    member: str
    needs_base: str = ""

    @property
    def name(self) -> str:
        """The row's name in a test's report."""
        return f"{self.kind}: {self.case}"

    @property
    def breaches(self) -> tuple[str, ...]:
        """What the law forbids and this row does."""
        found = []
        works = self.peft == EFFECT
        for where, outcome in (("without", self.alone), ("with", self.based)):
            if works and outcome != ACCEPTED:
                found.append(f"PEFT loads it with effect, and {where} the base it is {outcome} for use")
            if not works and outcome == ACCEPTED and (where == "with" or not self.needs_base):
                found.append(f"PEFT: {self.peft}; {where} the base it is {outcome} for use")
        if self.member not in ("", EFFECT):
            found.append(f"accepted for fuse, and the member gives {self.member}")
        return tuple(found)

    def cells(self) -> dict[str, str]:
        """Return the row as it is written."""
        return asdict(self) | {"disagrees": "yes" if self.breaches else ""}


def of_files(case: FileCase, folder: Path) -> FileRow:
    """Change the files of an adapter that PEFT saved, and set PEFT and the verdicts side by side."""
    kind, original = case.kind, folder / "original"
    with _quiet():
        options = case.original.options_for(kind)
        trained = train(case.original, kind, options or {}, original)
        changed = case.write(original, folder / "changed")
        peft, expected = _outcome_of_files(case, changed, trained)
        base = str(saved_base(kind, folder.parent))
        alone, alone_codes = _outcome(changed, ValidateOptions())
        based, based_codes = _outcome(changed, ValidateOptions(base=base))
        fused, _ = _outcome(changed, ValidateOptions(base=base, purpose=Purpose.FUSE))
        member = member_outcome(kind, changed, expected) if fused == ACCEPTED else ""
        needs_base = "yes" if case.needs_base else ""
        return FileRow(
            case.name, kind.name, peft, alone, alone_codes, based, based_codes, fused, member, needs_base
        )


def _outcome_of_files(case: FileCase, folder: Path, trained: Tensor) -> tuple[str, Tensor]:
    """Return what PEFT makes of changed files, and the answer that a member of a bundle must give."""
    if case.reference == "before":
        return outcome_of(case.kind, folder, trained), trained
    if case.reference == "none":
        return outcome_of(case.kind, folder, None), trained
    return EFFECT, answer(PeftModel.from_pretrained(case.kind.model(), folder), case.kind)


def _outcome(folder: Path, options: ValidateOptions) -> tuple[str, str]:
    try:
        (report,) = validate([folder], options).adapters
    except MeteoraError as error:
        return f"no verdict ({type(error).__name__})", ""
    return str(report.outcome), _codes(report.findings)
