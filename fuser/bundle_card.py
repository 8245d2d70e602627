"""The bundle's ``README.md``: what is in it, how it was made, and a loading example that works.

It is written with the bundle, from the manifest's and the config's facts, so it is one of the files whose
digests the manifest lists, and the page on the Hub is that very file. What depends on the machine that
verified is in ``verification.json``, which the card points at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..schemas.bundle import (
    IMPORTED,
    TRAINED,
    VERIFICATION_FILE,
    BundleConfig,
    ChangedFrom,
    Fitting,
    Gate,
    HeldOut,
)
from ..schemas.gate_choices import SCOPES
from ..schemas.inventory import Dtype
from ..schemas.manifest import ManifestMember
from ..schemas.names import is_repository
from ..schemas.recipe import Recipe, RecipeMember
from .licenses import combine_licenses
from .planning import DTYPES

_HUB_ORIGIN = re.compile(
    r"hf://(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@(?P<commit>[0-9a-f]{40})(?P<folder>(/[\w.-]+)*)",
    re.ASCII,
)
_COMMIT_DIGITS = 12
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._/-]{1,200}")

_EXAMPLE = """\
```python
import meteora_registry.runtime  # teaches PEFT the type METEORA
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base!r}{revision})
tokenizer = AutoTokenizer.from_pretrained({base!r}{revision})
model = PeftModel.from_pretrained(base, "path/or/repository/of/this/bundle")

prompt = tokenizer("A prompt", return_tensors="pt")
answer = model.generate(**prompt, max_new_tokens=64)
print(tokenizer.decode(answer[0], skip_special_tokens=True))
```

Without the first line PEFT and transformers stop with `KeyError: 'METEORA'`; that line is the cure. It is in
meteora-registry with its extra `runtime`, installed from its source: `pip install ".[runtime]"`.
"""

_NOT_FITTED = """\
**The gate is not fitted.** It was initialised with `{method}`, which knows nothing of the tasks: left
to itself the model will often pick the wrong adapter. Force one with
`meteora_registry.runtime.force_adapter(model, name)`, or fit the gate with `meteora-registry gate fit`.
"""

_FITTED = "The gate is fitted: {method}. It saw {samples}.\n"
_TRAINED = "The gate was {summary} by a training loop, which does not state its data.\n"
_IMPORTED = """\
The gate came with another layout, which does not say on what it was fitted, or whether it was.
"""

_RECIPE = """\
## Recipe

`meteora-registry fuse --recipe recipe.toml --out bundle` fuses these members again, where a catalog has them
from these repositories or under these names.{gates}

```toml
{toml}```
"""

_VERIFICATION = f"""\
Its maker states in `{VERIFICATION_FILE}` that the bundle was compared with its members' own files: every
module, routed and each member alone, against float64. The file has the outcome, the errors and the backends,
and is bound to this bundle's manifest by its digest. To you it is a claim, and so are the members' origins:
`meteora-registry verify` shows on your machine that the bundle is intact, and with `--level source --refetch`
that it is from its members.
"""


@dataclass(frozen=True, slots=True)
class Storage:
    """The size of a bundle's tensors; ``padding_bytes`` of ``size_bytes`` are zero rows."""

    dtype: Dtype
    size_bytes: int
    padding_bytes: int


def write_card(
    path: Path,
    config: BundleConfig,
    storage: Storage,
    members: Sequence[ManifestMember],
    *,
    with_experts: bool = False,
) -> None:
    """Write the card of a bundle; the same config and members give the same bytes."""
    is_imported = _comes_from(config.gate, IMPORTED)
    recipe = "" if is_imported else _describe_recipe(config, storage, members, with_experts)
    text = _front_matter(config, members) + _body(config, storage, members, recipe)
    path.write_text(text, encoding="utf-8", newline="\n")


def _front_matter(config: BundleConfig, members: Sequence[ManifestMember]) -> str:
    facts: dict[str, object] = {"library_name": "peft", "tags": ["lora", "meteora", "mixture-of-experts"]}
    base = config.base_model_name_or_path
    # The Hub refuses a card whose base is not a repository's name, such as a folder.
    if base is not None and is_repository(base):
        facts["base_model"] = base
        facts["base_model_relation"] = "adapter"
    combined = combine_licenses(member.license for member in members)
    facts["license"] = combined.identifier
    if combined.name is not None:
        facts["license_name"] = combined.name
    return f"---\n{yaml.safe_dump(facts, allow_unicode=False)}---\n\n"


def _body(config: BundleConfig, storage: Storage, members: Sequence[ManifestMember], recipe: str) -> str:
    count = len(members)
    title = f"# MeteoRA bundle of {count} adapter{'s' if count > 1 else ''}\n"
    decision = SCOPES[config.gate.scope].summary.format(top_k=config.top_k, count=count)
    facts = (
        f"Base: {_base(config)}. {decision}. {len(config.target_modules)} modules, {storage.dtype} factors, "
        f"{storage.size_bytes} bytes of tensors, {storage.padding_bytes} of them padding: each member's rank "
        "is stored rounded up to a multiple of 8, the rest zero.\n"
    )
    if (made := config.changed_from) is not None:
        facts += f"\nMade from the bundle with the manifest `{made.manifest_sha256}`: {_changed(made)}.\n"
    rows = "".join(_row(config, index, member) for index, member in enumerate(members))
    table = (
        "## Members\n\n| name | rank | modules | license | from | weights |\n|---|---|---|---|---|---|\n"
        + rows
    )
    statement = combine_licenses(member.license for member in members).statement
    licenses = f"## Licences\n\n{statement} Each member stays under its own licence.\n"
    loading = _EXAMPLE.format(base=_plain_name(config.base_model_name_or_path), revision=_revision(config))
    parts = [
        title,
        facts,
        table,
        licenses,
        "## Gate\n\n" + _describe_gate(config.gate),
        *([recipe] if recipe else []),
        "## Verification\n\n" + _VERIFICATION,
        "## Loading and generating\n\n" + loading,
    ]
    return "\n".join(parts)


def _changed(made_from: ChangedFrom) -> str:
    done = {"add": "added", "remove": "removed", "replace": "replaced"}[made_from.change]
    return f"`{made_from.member}` was {done}"


def _describe_recipe(
    config: BundleConfig, storage: Storage, members: Sequence[ManifestMember], with_experts: bool
) -> str:
    """Return the recipe of the bundle, from what it states of itself.

    Where its members are in a catalog is not among it, so a member from the Hub is named by its repository at
    the commit, and any other by its name in the bundle.
    """
    recipe = Recipe(
        members=tuple(_recipe_member(member) for member in members),
        base=config.base_model_name_or_path,
        base_revision=config.revision,
        top_k=config.top_k,
        temperature=config.temperature,
        dtype=_DTYPE_NAMES[storage.dtype],
        with_experts=with_experts,
        trust_tensors=any(member.trusts_tensors for member in members),
    )
    if (first := config.gate.initialisation) is not None:
        recipe = recipe.model_copy(update={"gate": first.method, "seed": first.seed})
    gates = ""
    if config.gate.is_fitted:
        is_trained = _comes_from(config.gate, TRAINED)
        how = "trained, which no command repeats" if is_trained else "fitted by `gate fit`"
        gates = f" Its gates are then {how}."
    return _RECIPE.format(toml=recipe.to_toml(), gates=gates)


def _recipe_member(member: ManifestMember) -> RecipeMember:
    found = _HUB_ORIGIN.fullmatch(member.origin.location) if member.origin.kind == "hub" else None
    if found is None:
        return RecipeMember(adapter=member.name)
    return RecipeMember(adapter=found[0].removeprefix("hf://"), name=member.name)


def _comes_from(gate: Gate, method: str) -> bool:
    return isinstance(gate.fitted, Fitting) and gate.fitted.method == method


def _describe_gate(gate: Gate) -> str:
    match gate.fitted, gate.initialisation:
        case Fitting(method=method), _ if method == IMPORTED:
            return _IMPORTED
        case Fitting(method=method) as fitted, _ if method == TRAINED:
            return _TRAINED.format(summary=_cell(fitted.summary)) + _describe_requests(gate)
        case Fitting(method=method, data=data), _:
            samples = ", ".join(f"{each.samples} of `{each.member}`" for each in data)
            statement = _FITTED.format(method=_cell(method), samples=f"samples: {samples}")
            return statement + _describe_requests(gate)
        case _, initialisation:
            return _NOT_FITTED.format(method=initialisation.method if initialisation else "nothing")


def _describe_requests(gate: Gate) -> str:
    """Return the text on the gates that decide ahead, and how they decided about held-out prompts."""
    if gate.request is None:
        return _describe_segments(gate)
    count, judged = len(gate.request.modules), gate.request.held_out
    parts = [
        f"\nGates of their own decide about a request, from {count} input{'s' * (count > 1)} of the base."
    ]
    if judged is not None:
        parts.append(
            f"Of {judged.prompts} held-out prompts of the members ({' and '.join(gate.request.forms)}), "
            f"{judged.right} were decided rightly."
        )
    if gate.abstain is None:
        parts.append("No prompt is left to the base alone.")
    else:
        parts.append(
            f"A prompt is left to the base if it scores lower than {100 * (1 - gate.abstain):g} % of the "
            f"members' own prompts do{_left(judged)}."
        )
    return " ".join(parts) + "\n"


def _describe_segments(gate: Gate) -> str:
    parts = []
    if gate.evidence is not None:
        read = f"{len(gate.evidence)} gate{'s' * (len(gate.evidence) > 1)}"
        parts.append(f"Segments are decided by {read}, the last of them in `{gate.evidence[-1]}`.")
    if gate.answers is not None:
        parts.append(
            "Where a prompt has a numbered list for several members, the numbered lines of its answer are "
            "served in the order of that list."
        )
    return f"\n{' '.join(parts)}\n" if parts else ""


def _left(judged: HeldOut | None) -> str:
    if judged is None or judged.own_left is None or judged.general_left is None:
        return ""
    return (
        f": {judged.own_left} of those {judged.prompts}, and {judged.general_left} of "
        f"{judged.general_prompts} general prompts"
    )


def _base(config: BundleConfig) -> str:
    base = config.base_model_name_or_path
    if base is None:
        return "not stated"
    at = f" at {_cell(config.revision)}" if config.revision else ""
    if is_repository(base):
        return f"[`{base}`](https://huggingface.co/{base}){at}"
    return f"{_cell(base)}{at}"


def _row(config: BundleConfig, index: int, member: ManifestMember) -> str:
    ranks = [layout.ranks[index] for layout in config.layouts.values() if layout.ranks[index]]
    shown = str(ranks[0]) if len(set(ranks)) == 1 else f"{min(ranks)} to {max(ranks)}"
    cells = (
        member.name,
        shown,
        str(len(ranks)),
        _cell(member.license or "unknown"),
        _origin(member),
        f"`{member.weights_sha256.short}`",
    )
    return "| " + " | ".join(cells) + " |\n"


def _origin(member: ManifestMember) -> str:
    """Return where a member came from: a link to its repository at the commit, or the folder's name."""
    found = _HUB_ORIGIN.fullmatch(member.origin.location) if member.origin.kind == "hub" else None
    if found is None:
        claimed = " (claimed by the path of its folder)" if member.origin.is_claimed else ""
        return _cell(str(member.origin)) + claimed
    repository, commit, folder = found["repository"], found["commit"], found["folder"]
    address = f"https://huggingface.co/{repository}/tree/{commit}{folder}"
    return f"[{_cell(repository + folder)}]({address}) at `{commit[:_COMMIT_DIGITS]}`"


def _plain_name(base: str | None) -> str:
    """Return the base's name if it can be quoted in code as it is, otherwise a placeholder."""
    return base if base and _PLAIN_NAME.fullmatch(base) else "the/base"


def _revision(config: BundleConfig) -> str:
    """Return the base's revision as an argument of the example; empty if it cannot be quoted as it is."""
    revision = config.revision
    return f", revision={revision!r}" if revision and _PLAIN_NAME.fullmatch(revision) else ""


def _cell(text: str) -> str:
    """Return foreign text for a table: without markup, line breaks or new columns."""
    kept = "".join(character if character.isprintable() else " " for character in text)
    return "".join("\\" + c if c in "\\`*_[]<>|#!" else c for c in kept)
