"""The bundle's ``adapter_config.json``: its members, their ranks and scalings, and how it routes.

Ranks and scalings are kept here and not among the tensors, because loaders cast tensors. The flat
storage of a module follows from this document alone: member i owns the rows
``offsets[i]:offsets[i+1]`` of ``meteora_A`` and ``meteora_B``, its rank rounded up to
``rank_alignment``, the rest zero; a member that does not touch the module owns none.
"""

from __future__ import annotations

import math
import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    model_validator,
)

from .answer_order import AnswerOrder
from .digest import Digest
from .document import Count, Document, PositiveCount, leaving_out, load_json
from .errors import BundleRefused, InvalidDocument
from .gate_choices import (
    DECISION_SCOPES,
    DEFAULT_SAMPLES,
    INITIAL_GATE_KINDS,
    SCOPES,
    GateKind,
    InitialGate,
    PromptForm,
    Scope,
)
from .inventory import Dtype
from .names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Name
from .trained_on import TrainedOn, transformers_mapping

BUNDLE_FORMAT = 1
PEFT_TYPE = "METEORA"
RANK_ALIGNMENT = 8
NOT_FITTED = "not fitted"
# What a bundle may require of its reader, beyond one gate for every module that decides for every token.
GATE_SOURCES = "gate-sources"
GATE_SCOPE = "gate-scope"
GATE_ABSTAIN = "gate-abstain"
GATE_REQUEST = "gate-request"
# Request gates at modules that no member touches.
GATE_OBSERVED = "gate-observed"
GATE_EVIDENCE = "gate-evidence"
# Earlier readers take only gates whose fit names its data, and would not say that they are too old.
GATE_TRAINED = "gate-trained"
GATE_ANSWERS = "gate-answers"
KNOWN_FEATURES: frozenset[str] = frozenset(
    {
        GATE_SOURCES,
        GATE_SCOPE,
        GATE_ABSTAIN,
        GATE_REQUEST,
        GATE_OBSERVED,
        GATE_EVIDENCE,
        GATE_TRAINED,
        GATE_ANSWERS,
    }
)

CONFIG_FILE = ADAPTER_CONFIG
WEIGHTS_FILE = ADAPTER_WEIGHTS
MANIFEST_FILE = "meteora_manifest.json"
VERIFICATION_FILE = "verification.json"
# Of a bundle of very many members and modules.
MAX_BUNDLE_CONFIG_BYTES = 64 << 20
CARD_FILE = "README.md"
MAX_CARD_BYTES = 4 << 20
# A signature over manifest and record; no manifest lists it.
SIGNATURE_FILE = "model.sig"
EXPERTS_FOLDER = "experts"

TENSOR_PREFIX = "base_model.model."
TENSOR_A = "meteora_A"
TENSOR_B = "meteora_B"
TENSOR_GATE = "meteora_gate"
TENSOR_GATE_BIAS = "meteora_gate_bias"
TENSOR_REQUEST_GATE = "meteora_request_gate"
TENSOR_REQUEST_GATE_BIAS = "meteora_request_gate_bias"
TENSOR_REQUEST_GRAM = "meteora_request_gram"
REQUEST_TENSORS = (TENSOR_REQUEST_GATE, TENSOR_REQUEST_GATE_BIAS, TENSOR_REQUEST_GRAM)
FACTORS = (TENSOR_A, TENSOR_B)
GATE_TENSORS = (TENSOR_GATE, TENSOR_GATE_BIAS, *REQUEST_TENSORS)

IMPORTED = "imported"
# Of gates that a training loop changed after the bundle was made.
TRAINED = "trained"
MAX_RANK = 1 << 20
MAX_MODULES = 1 << 16
MAX_MEMBERS = 4096
# Members times modules: the layouts of a config cost this much before any tensor is read.
MAX_LAYOUT_ENTRIES = 1_000_000
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6
# Kernels multiply a scaling by factors, weights and tokens in float32, whose normal numbers go from 1e-38
# to 3e38: within these bounds there is room for the others. Scalings in use go from 1e-3 to 1e3.
MIN_SCALING, MAX_SCALING = 1e-20, 1e20
# A length in float32 plus `eps` must differ from neither zero nor, where the length is 1, from the length.
MIN_EPS, MAX_EPS = 1e-20, 1.0
MAX_REQUEST_MODULES = 64
MAX_TEMPLATE_TOKENS = 4096
MAX_BACKGROUND_CLASSES = 64
# One for every hundredth from 0 to 1.
QUANTILES = 101

_LAYER = re.compile(r"((?:.*?\.)?)([0-9]{1,9})(?=\.|$)")

Scaling = Annotated[FiniteFloat, Field(ge=MIN_SCALING, le=MAX_SCALING)]
Eps = Annotated[FiniteFloat, Field(ge=MIN_EPS, le=MAX_EPS)]
ModulePath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$", max_length=512)]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a safetensors file."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Its bytes in the file."""
        return math.prod(self.shape) * self.dtype.size_bytes


def tensor_shapes(
    rows: int,
    members: int,
    in_features: int,
    out_features: int,
    *,
    has_gate: bool,
    has_bias: bool,
    request_classes: int = 0,
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of one module, by its short name, in their order in the file.

    Args:
        rows: of A and B, all members' padded ranks together; 0 where no member has factors.
        members: in the bundle.
        in_features: of the module.
        out_features: of the module.
        has_gate: whether the module has a gate of its own.
        has_bias: whether gates have a bias.
        request_classes: of the module's request gate, members and background; 0 if it has none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if rows:
        shapes |= {TENSOR_A: (rows, in_features), TENSOR_B: (rows, out_features)}
    if has_gate:
        shapes[TENSOR_GATE] = (members, in_features)
    if has_gate and has_bias:
        shapes[TENSOR_GATE_BIAS] = (members,)
    if request_classes:
        shapes[TENSOR_REQUEST_GATE] = (request_classes, in_features)
        shapes[TENSOR_REQUEST_GATE_BIAS] = (request_classes,)
        shapes[TENSOR_REQUEST_GRAM] = (members, members)
    return shapes


def align_rank(rank: int, alignment: int = RANK_ALIGNMENT) -> int:
    """Return ``rank`` rounded up to a multiple of ``alignment``; 0 stays 0."""
    return -(-rank // alignment) * alignment


@dataclass(frozen=True, slots=True)
class ModuleLayout:
    """The rows of each member in one module's flat tensors.

    ``ranks`` are the members' own, ``offsets`` has one entry more than there are members, and
    ``offsets[-1]`` is the number of rows.
    """

    path: str
    ranks: tuple[int, ...]
    scalings: tuple[float, ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, path: str, ranks: tuple[int, ...], scalings: tuple[float, ...]) -> Self:
        """Return the layout of members with these ranks, in this order."""
        padded = (align_rank(rank) for rank in ranks)
        return cls(path, ranks, scalings, tuple(accumulate(padded, initial=0)))

    @property
    def rows(self) -> int:
        """Rows of ``meteora_A`` and ``meteora_B``."""
        return self.offsets[-1]

    def rows_of(self, member: int) -> slice:
        """Return the member's rows that carry its factors, without the padding."""
        return slice(self.offsets[member], self.offsets[member] + self.ranks[member])

    def padding_of(self, member: int) -> slice:
        """Return the member's rows that are zero."""
        return slice(self.offsets[member] + self.ranks[member], self.offsets[member + 1])


class Override(Document):
    """A member's rank and scaling in one module; rank 0 where it does not touch the module."""

    rank: int = Field(ge=0, le=MAX_RANK)
    scaling: Scaling


class BundleMember(Document):
    """One adapter of a bundle: its rank and scaling, and the modules where they differ."""

    name: Name
    rank: int = Field(ge=1, le=MAX_RANK)
    scaling: Scaling
    overrides: dict[ModulePath, Override]

    def factors_in(self, path: str) -> tuple[int, float]:
        """Return the member's own rank and scaling in a module."""
        override = self.overrides.get(path)
        return (self.rank, self.scaling) if override is None else (override.rank, override.scaling)


class GateInitialisation(Document):
    """The origin of a gate's first values, which can be computed again from the members and the seed."""

    method: InitialGate
    seed: int = Field(ge=0, lt=1 << 32)


class FittingData(Document):
    """The data set of one member that a gate was fitted on."""

    member: Name
    sha256: Digest
    samples: PositiveCount


class TrainedFrom(Document):
    """The bundle whose gates were trained: its manifest, and what the catalog calls it, if it is in one."""

    bundle: str | None = Field(min_length=1, max_length=200)
    manifest_sha256: Digest


class Fitting(Document):
    """The method by which a gate was fitted, and the data: one data set per member.

    ``imported`` values came with another layout, which does not state on what they were fitted, or
    whether they were; ``trained`` ones were changed by a training loop, which does not state its data, and
    ``trained_from`` is the bundle that was trained, where it is known. A fit in closed form read at most
    ``max_samples`` samples of a member.
    """

    method: str = Field(min_length=1, max_length=200)
    data: tuple[FittingData, ...]
    trained_from: TrainedFrom | None = None
    max_samples: PositiveCount = DEFAULT_SAMPLES

    @property
    def summary(self) -> str:
        """The method, and for trained gates also the bundle."""
        if self.trained_from is None:
            return self.method
        return f"{self.method} from {self.trained_from.bundle or self.trained_from.manifest_sha256.short}"

    # A fit keeps the bytes it had before there were trained gates, and a choice of samples.
    _leave_out = leaving_out("trained_from", "max_samples")

    @model_validator(mode="after")
    def _check_only_trained_gates_name_a_bundle(self) -> Self:
        if self.trained_from is not None and self.method != TRAINED:
            raise ValueError(f"`trained_from` goes with the method `{TRAINED}`, found `{self.method}`")
        return self


class HeldOut(Document):
    """The result of decisions about prompts that the fit did not read.

    Attributes:
        prompts: how many of the members' own there were, every form of a line counted.
        right: how many of them the decision gave to their own member, abstention aside.
        abstain: the threshold below which prompts were counted as left to the base; None for none.
        own_left: how many own prompts were left to the base.
        general_prompts: how many of the background's prompts there were.
        general_left: how many of them were left to the base.
    """

    prompts: PositiveCount
    right: Count
    abstain: FiniteFloat | None = Field(gt=0, le=1)
    own_left: Count | None
    general_prompts: Count
    general_left: Count | None


class TemplateTokens(Document):
    """The tokens that the base's chat template puts before and behind a question.

    All prompts in the template share them, so they say nothing of what is asked, and are not counted.
    """

    before: tuple[Count, ...] = Field(max_length=MAX_TEMPLATE_TOKENS)
    behind: tuple[Count, ...] = Field(max_length=MAX_TEMPLATE_TOKENS)

    def span_of(self, ids: Sequence[int]) -> tuple[int, int]:
        """Return where the part of a prompt that is not the template's begins and ends.

        As much of its beginning as is there is left out, and its end only as a whole. If nothing were left,
        all counts.
        """
        pairs = zip(self.before, ids, strict=False)
        start = next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(self.before), len(ids)))
        end = len(ids) - len(self.behind)
        if not self.behind or tuple(ids[max(end, 0) :]) != self.behind:
            end = len(ids)
        return (start, end) if start < end else (0, len(ids))


class RequestGates(Document):
    """The gates that decide for whole requests: a class for each member, and classes of foreign prompts.

    Attributes:
        modules: that have one; its rows are the members in order, then the background.
        observed: the input features of those modules that no member touches; None if members touch them all.
        background: the names of the classes of foreign prompts.
        forms: in which the prompts were read.
        template: the tokens of the base's chat template, which are not counted; None without one.
        centre: the mean familiarity of held-out own prompts.
        spread: its standard deviation, above 0.
        quantiles: the score of own prompts at every hundredth from 0 to 1, which turn a score into a
            confidence: the share of own prompts whose score is lower. None if there were too few to know.
        held_out: what the decisions were worth on prompts that the fit did not read; None without any.
    """

    modules: tuple[ModulePath, ...] = Field(min_length=1, max_length=MAX_REQUEST_MODULES)
    observed: dict[ModulePath, PositiveCount] | None = Field(
        default=None, min_length=1, max_length=MAX_REQUEST_MODULES
    )
    background: tuple[Name, ...] = Field(min_length=1, max_length=MAX_BACKGROUND_CLASSES)
    forms: tuple[PromptForm, ...] = Field(min_length=1, max_length=2)
    template: TemplateTokens | None
    centre: FiniteFloat
    spread: FiniteFloat = Field(gt=0)
    quantiles: tuple[FiniteFloat, ...] | None = Field(min_length=QUANTILES, max_length=QUANTILES)
    held_out: HeldOut | None

    # A bundle whose members touch all of the modules keeps the bytes it had before others could be read.
    _leave_out = leaving_out("observed")

    @model_validator(mode="after")
    def _check_quantiles_and_modules(self) -> Self:
        values = self.quantiles or ()
        if any(after < before for before, after in pairwise(values)):
            raise ValueError("the quantiles of the score must not fall")
        if len(set(self.modules)) < len(self.modules):
            raise ValueError("a module is named twice")
        if strangers := sorted(set(self.observed or ()) - set(self.modules)):
            raise ValueError(f"`observed` names `{strangers[0]}`, which is not among the modules")
        return self


class Gate(Document):
    """A bundle's gates: how one turns a token into one logit per member, and where its values come from.

    ``scope`` is what one decision applies to. ``sources`` maps a module to the one whose routing it uses;
    such a module has no gate of its own. ``abstain`` is the confidence below which a decision leaves its
    tokens to the base. ``request`` describes the gates that decide for whole requests in the place of these.
    ``evidence`` names the modules whose gates a decision ahead reads, where it does not read all of them.
    ``answers`` is the order in which answers are served, where their text alone does not decide.
    ``initialisation`` is None for values that came from outside; ``fitted`` then states how.
    """

    kind: GateKind
    scope: Scope
    bias: bool
    eps: Eps
    sources: dict[ModulePath, ModulePath] = Field(max_length=MAX_MODULES)
    abstain: FiniteFloat | None = Field(default=None, gt=0, le=1)
    request: RequestGates | None = None
    evidence: tuple[ModulePath, ...] | None = Field(
        default=None, min_length=1, max_length=MAX_REQUEST_MODULES
    )
    answers: AnswerOrder | None = None
    initialisation: GateInitialisation | None
    fitted: Literal["not fitted"] | Fitting

    @property
    def is_fitted(self) -> bool:
        """Whether the values were fitted, here or elsewhere; if not, they are those of an initialisation."""
        return self.fitted != NOT_FITTED

    @property
    def features(self) -> tuple[str, ...]:
        """The features that a reader of a bundle with this gate must know, sorted."""
        needed = {
            GATE_SOURCES: bool(self.sources),
            GATE_SCOPE: self.scope != "token",
            GATE_ABSTAIN: self.abstain is not None,
            GATE_REQUEST: self.request is not None,
            GATE_OBSERVED: self.request is not None and self.request.observed is not None,
            GATE_EVIDENCE: self.evidence is not None,
            GATE_ANSWERS: self.answers is not None,
            GATE_TRAINED: isinstance(self.fitted, Fitting) and self.fitted.method == TRAINED,
        }
        return tuple(sorted(feature for feature, is_needed in needed.items() if is_needed))

    # A bundle without the feature keeps the bytes it had before there was one.
    _leave_out = leaving_out("abstain", "request", "evidence", "answers")

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        for path, source in self.sources.items():
            if source in self.sources:
                raise ValueError(
                    f"`{path}` takes its routing from `{source}`, which has none of its own: "
                    f"it takes it from `{self.sources[source]}`"
                )
        return self

    @model_validator(mode="after")
    def _check_the_scope_can_abstain(self) -> Self:
        if self.abstain is not None and self.scope not in DECISION_SCOPES:
            listed = ", ".join(f"`{scope}`" for scope in sorted(DECISION_SCOPES))
            raise ValueError(f"`abstain` goes with the scopes {listed}, found `{self.scope}`")
        return self

    @model_validator(mode="after")
    def _check_request_gates_are_used(self) -> Self:
        if self.request is None:
            return self
        if not SCOPES[self.scope].decides_requests:
            raise ValueError(f"`request` goes with a scope that decides for requests, found `{self.scope}`")
        if self.abstain is not None and self.request.quantiles is None:
            raise ValueError("`abstain` needs the quantiles of the request gates' score, found none")
        return self

    @model_validator(mode="after")
    def _check_evidence_is_read(self) -> Self:
        if self.evidence is None:
            return self
        if self.scope not in DECISION_SCOPES or self.request is not None:
            raise ValueError(
                "`evidence` goes with a scope that decides ahead by the modules' own gates, found "
                f"`{self.scope}`{' with `request`' if self.request else ''}"
            )
        if len(set(self.evidence)) < len(self.evidence):
            raise ValueError("`evidence` names a module twice")
        if borrowing := [path for path in self.evidence if path in self.sources]:
            raise ValueError(f"`evidence` names `{borrowing[0]}`, which has no gate of its own")
        return self

    @model_validator(mode="after")
    def _check_answers_are_followed(self) -> Self:
        if self.answers is not None and not SCOPES[self.scope].observes_answers:
            raise ValueError(f"`answers` goes with the scope `segment`, found `{self.scope}`")
        return self

    @model_validator(mode="after")
    def _check_values_are_accounted_for(self) -> Self:
        if self.is_fitted:
            return self
        if self.initialisation is None:
            raise ValueError("a gate that is not fitted states its initialisation, found none")
        method = self.initialisation.method
        if self.bias or self.kind != INITIAL_GATE_KINDS[method]:
            raise ValueError(
                f"a gate that is not fitted has the kind `{INITIAL_GATE_KINDS[method]}` of `{method}` and no "
                f"bias, found `{self.kind}`{' with a bias' if self.bias else ''}"
            )
        return self


Change = Literal["add", "remove", "replace"]


class ChangedFrom(Document):
    """The bundle that one with other members was made from: its manifest, and the change of one member.

    Nothing that is computed depends on it; a reader that does not know it leaves it out.
    """

    manifest_sha256: Digest
    change: Change
    member: Name


class BundleConfig(Document):
    """A bundle's config, format 1; ``layouts`` is the flat storage that follows from it."""

    # PEFT adds keys of its own when it saves. A key that changes the result must come with a
    # required feature, so ignoring the others is safe.
    model_config = ConfigDict(extra="ignore")

    peft_type: Literal["METEORA"]
    meteora_format: Literal[1]
    required_features: tuple[str, ...]
    task_type: str | None
    base_model_name_or_path: str | None
    revision: str | None
    inference_mode: bool
    target_modules: tuple[ModulePath, ...] = Field(min_length=1, max_length=MAX_MODULES)
    members: tuple[BundleMember, ...] = Field(min_length=1, max_length=MAX_MEMBERS)
    rank_alignment: Literal[8]
    top_k: PositiveCount
    temperature: FiniteFloat = Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    gate: Gate
    # Any: PEFT writes one of its own when it saves, and nothing here follows from it.
    auto_mapping: Any = None
    changed_from: ChangedFrom | None = None

    @property
    def trained_on(self) -> TrainedOn:
        """The model that the members were trained on, as far as the bundle names it."""
        return TrainedOn.read(self.task_type, transformers_mapping(self.auto_mapping))

    # Bundles without these fields keep the bytes that they had before there were any.
    _leave_out = leaving_out("auto_mapping", "changed_from")

    @classmethod
    def read(cls, data: bytes, *, what: str = CONFIG_FILE, max_bytes: int = MAX_BUNDLE_CONFIG_BYTES) -> Self:
        """Read a config, refusing first what this reader does not know.

        Raises:
            BundleRefused: not a bundle, another format, or a required feature that is not known.
            InvalidDocument: not JSON, or a field breaks the schema.
        """
        if data.startswith(BOM_UTF8):
            raise InvalidDocument(
                f"`{what}` begins with a byte order mark, which PEFT does not read, expected `{{`",
                hint="save it as UTF-8 without the mark",
            )
        value = load_json(data, what=what, max_bytes=max_bytes)
        check_readable(value, what=what)
        del value
        return cls.from_checked(data, what=what)

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError(f"member names must differ, found {names}")
        if self.top_k > len(names):
            raise ValueError(f"top_k is {self.top_k}, expected at most the number of members, {len(names)}")
        if list(self.target_modules) != sorted(set(self.target_modules)):
            raise ValueError("target_modules must be sorted and differ")
        if len(names) * len(self.target_modules) > MAX_LAYOUT_ENTRIES:
            raise ValueError(
                f"{len(names)} members of {len(self.target_modules)} modules are more than "
                f"{MAX_LAYOUT_ENTRIES} entries"
            )
        self._check_fitting(names)
        self._check_gate()
        known = set(self.target_modules)
        for member in self.members:
            if strangers := sorted(set(member.overrides) - known):
                raise ValueError(
                    f"member `{member.name}` overrides `{strangers[0]}`, which is not a target module"
                )
        for path, layout in self.layouts.items():
            if layout.rows == 0:
                raise ValueError(f"no member touches the target module `{path}`")
        return self

    def _check_gate(self) -> None:
        known = set(self.target_modules)
        for path, source in self.gate.sources.items():
            for end in (path, source):
                if end not in known:
                    raise ValueError(
                        f"`gate.sources` takes `{path}` to `{source}`, but `{end}` is not a target module"
                    )
            if _runs_in_a_later_layer(source, path):
                raise ValueError(
                    f"`{path}` takes its routing from `{source}`, which is in a later layer and runs after it"
                )
        for path in () if self.gate.request is None else self.gate.request.modules:
            if path not in known and path not in self.observed:
                raise ValueError(f"`gate.request` names `{path}`, which is not a target module, nor observed")
            if path in known and path in self.observed:
                raise ValueError(f"`gate.request.observed` names `{path}`, which is a target module")
        for path in self.gate.evidence or ():
            if path not in known:
                raise ValueError(f"`gate.evidence` names `{path}`, which is not a target module")
        for feature in self.gate.features:
            if feature not in self.required_features:
                raise ValueError(f"the gate needs `{feature}` in `required_features`, which lacks it")

    def _check_fitting(self, names: list[str]) -> None:
        fitted = self.gate.fitted
        if isinstance(fitted, Fitting) and fitted.method not in (IMPORTED, TRAINED):
            found = [data.member for data in fitted.data]
            if found != names:
                raise ValueError(f"a fitted gate names the data of every member in order, found {found}")

    @cached_property
    def layouts(self) -> dict[str, ModuleLayout]:
        """The flat storage of every module, by path, in the order of ``target_modules``."""
        layouts = {}
        for path in self.target_modules:
            factors = [member.factors_in(path) for member in self.members]
            ranks = tuple(rank for rank, _ in factors)
            layouts[path] = ModuleLayout.of(path, ranks, tuple(scaling for _, scaling in factors))
        return layouts

    @property
    def observed(self) -> dict[str, int]:
        """The input features of the modules that request gates read and no member touches, in their order."""
        request = self.gate.request
        if request is None or request.observed is None:
            return {}
        return {path: request.observed[path] for path in request.modules if path in request.observed}

    @property
    def module_paths(self) -> tuple[str, ...]:
        """Every module that has tensors, in their order in the file: the targets, then the observed ones."""
        return (*self.target_modules, *self.observed)

    def layout_of(self, path: str) -> ModuleLayout:
        """Return the flat storage of a module, which has no rows where no member touches it."""
        if path in self.layouts:
            return self.layouts[path]
        absent = len(self.members)
        return ModuleLayout.of(path, (0,) * absent, (1.0,) * absent)

    def has_gate(self, path: str) -> bool:
        """Return whether a module has a gate of its own, and neither takes another's routing nor has none."""
        return path in self.layouts and path not in self.gate.sources

    def request_classes(self, path: str) -> int:
        """Return the rows of a module's request gate, 0 if it has none."""
        request = self.gate.request
        if request is None or path not in request.modules:
            return 0
        return len(self.members) + len(request.background)

    def tensors_of(
        self, path: str, in_features: int, out_features: int, dtype: Dtype
    ) -> tuple[TensorSpec, ...]:
        """Return a module's tensors, in their order in the file; ``dtype`` is that of the factors."""
        shapes = tensor_shapes(
            self.layout_of(path).rows,
            len(self.members),
            in_features,
            out_features,
            has_gate=self.has_gate(path),
            has_bias=self.gate.bias,
            request_classes=self.request_classes(path),
        )
        return tuple(
            TensorSpec(tensor_name(path, tensor), dtype if tensor in FACTORS else Dtype.F32, shape)
            for tensor, shape in shapes.items()
        )

    def all_tensors(self, shapes: Mapping[str, tuple[int, int]], dtype: Dtype) -> tuple[TensorSpec, ...]:
        """Return every tensor, in their order in the file, by ``(in, out)`` of each target module."""
        every = {path: shapes[path] for path in self.target_modules}
        every |= {path: (features, 0) for path, features in self.observed.items()}
        return tuple(spec for path, shape in every.items() for spec in self.tensors_of(path, *shape, dtype))

    @property
    def tensor_names(self) -> set[str]:
        """The names of all tensors that a bundle of this config has."""
        anything = dict.fromkeys(self.target_modules, (0, 0))
        return {spec.name for spec in self.all_tensors(anything, Dtype.F32)}

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names in order."""
        return tuple(member.name for member in self.members)

    def index_of(self, name: str) -> int:
        """Return the place of a member.

        Raises:
            BundleRefused: there is none of that name.
        """
        if name not in self.names:
            raise BundleRefused(
                f"the bundle has no member `{name}`, it has {', '.join(f'`{known}`' for known in self.names)}"
            )
        return self.names.index(name)


def _runs_in_a_later_layer(source: str, path: str) -> bool:
    """Return whether ``source`` is further on in the stack of layers; paths of two stacks do not compare."""
    later, layer = _LAYER.match(source), _LAYER.match(path)
    return bool(later and layer and later[1] == layer[1] and int(later[2]) > int(layer[2]))


def check_readable(value: Any, *, what: str) -> None:
    """Refuse a parsed config that is not a bundle, or has a format or feature this reader does not know.

    Raises:
        BundleRefused: with what was found and what this reader knows.
    """
    if not isinstance(value, dict) or value.get("peft_type") != PEFT_TYPE:
        found = value.get("peft_type") if isinstance(value, dict) else type(value).__name__
        raise BundleRefused(
            f"`{what}` is not a MeteoRA bundle: peft_type is `{found}`, expected `{PEFT_TYPE}`"
        )
    found_format = value.get("meteora_format")
    if type(found_format) is not int or found_format != BUNDLE_FORMAT:
        raise BundleRefused(
            f"`{what}` has bundle format `{value.get('meteora_format')}`, "
            f"this reader knows `{BUNDLE_FORMAT}`",
            hint="upgrade meteora-registry, or fuse the bundle again with this version",
        )
    features = value.get("required_features")
    named = (
        [feature for feature in features if isinstance(feature, str)] if isinstance(features, list) else []
    )
    unknown = [feature for feature in named if feature not in KNOWN_FEATURES]
    if unknown:
        listed = ", ".join(f"`{feature}`" for feature in unknown)
        raise BundleRefused(
            f"`{what}` requires {listed}, which this reader does not know",
            hint="upgrade meteora-registry",
        )


def is_bundle_file(path: str) -> bool:
    """Return whether bundle format 1 has a file at ``path``; every other file is not part of a bundle."""
    folder, _, name = path.rpartition("/")
    if not folder:
        return name in (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE, VERIFICATION_FILE, CARD_FILE)
    parent, _, member = folder.rpartition("/")
    return parent == EXPERTS_FOLDER and member != "" and name in (CONFIG_FILE, WEIGHTS_FILE)


def tensor_name(path: str, tensor: str) -> str:
    """Return the name in the weights file of one of a module's tensors."""
    return f"{TENSOR_PREFIX}{path}.{tensor}"
