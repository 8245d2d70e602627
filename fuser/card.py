"""The bundle's ``README.md``: what is in it, how it was made, and a loading example that works."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..schemas.bundle import IMPORTED, NOT_FITTED, Fitting, Gate
from ..schemas.manifest import ManifestMember
from ..schemas.plan import FusePlan

_EXAMPLE = """\
```python
import meteora_registry.runtime  # registers the peft type METEORA
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, "path/or/repository/of/this/bundle")
```

Without the first line PEFT answers `KeyError: 'METEORA'`. Install it with
`pip install "meteora-registry[runtime]"`.
"""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9._/-]{1,200}")

_NOT_FITTED = """\
**The gate is not fitted.** It was initialised with `{method}`, which knows nothing of the tasks: left
to itself the model will often pick the wrong adapter. Force one with
`meteora_registry.runtime.force_adapter(model, name)`, or fit the gate before relying on it.
"""


_FITTED = "The gate is fitted: {method}.\n"
_IMPORTED = """\
The gate came with another layout, which does not say on what it was fitted, or whether it was.
"""


def write_card(path: Path, plan: FusePlan, gate: Gate, members: Sequence[ManifestMember]) -> None:
    """Write the card of a bundle that was just fused; the same plan and members give the same bytes."""
    text = _front_matter(plan, members) + _body(plan, gate, members)
    path.write_text(text, encoding="utf-8", newline="\n")


def _front_matter(plan: FusePlan, members: Sequence[ManifestMember]) -> str:
    facts: dict[str, object] = {"library_name": "peft", "tags": ["lora", "meteora", "mixture-of-experts"]}
    if plan.base is not None:
        facts["base_model"] = plan.base
    licenses = {member.license for member in members}
    if len(licenses) == 1 and (only := licenses.pop()):
        facts["license"] = only
    return f"---\n{yaml.safe_dump(facts, allow_unicode=False)}---\n\n"


def _body(plan: FusePlan, gate: Gate, members: Sequence[ManifestMember]) -> str:
    count = len(members)
    title = f"# MeteoRA bundle of {count} adapter{'s' if count > 1 else ''}\n"
    facts = (
        f"Base: {_cell(plan.base or 'unknown')}. Each linear layer picks the top {plan.top_k} of {count} "
        f"adapters for each token. {len(plan.modules)} modules, {plan.dtype} factors, "
        f"{plan.size_bytes} bytes of tensors, {plan.padding_bytes} of them padding.\n"
    )
    rows = "".join(_row(plan, index, member) for index, member in enumerate(members))
    table = (
        "## Members\n\n| name | rank | modules | license | from | weights |\n|---|---|---|---|---|---|\n"
        + rows
    )
    fitted = _NOT_FITTED.format(method=plan.gate) if gate.fitted == NOT_FITTED else ""
    if isinstance(gate.fitted, Fitting) and gate.fitted.method == IMPORTED:
        fitted = _IMPORTED
    elif isinstance(gate.fitted, Fitting):
        fitted = _FITTED.format(method=_cell(gate.fitted.method))
    example = "## Loading\n\n" + _EXAMPLE.format(base=_plain_name(plan.base))
    return "\n".join([title, facts, table, "## Gate\n\n" + fitted, example])


def _row(plan: FusePlan, index: int, member: ManifestMember) -> str:
    ranks = sorted({module.ranks[index] for module in plan.modules if module.ranks[index]})
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    cells = (
        member.name,
        shown,
        str(plan.members[index].modules),
        _cell(member.license or "unknown"),
        _cell(str(member.origin)),
        f"`{member.weights_sha256.short}`",
    )
    return "| " + " | ".join(cells) + " |\n"


def _plain_name(base: str | None) -> str:
    """The base, where it can stand in code as it is; else a place for it."""
    return base if base and _PLAIN_NAME.fullmatch(base) else "the/base"


def _cell(text: str) -> str:
    """Text from outside inside a table: no markup, no line break, no new column."""
    kept = "".join(character if character.isprintable() else " " for character in text)
    return "".join("\\" + c if c in "\\`*_[]<>|#!" else c for c in kept)
