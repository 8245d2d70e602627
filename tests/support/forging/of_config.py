"""Forged configs: what is computed differs from what was fused, while every digest is right again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from .forger import CONFIG, Forger, Json, add, forgery, spell


def changed(name: str, forged: str, **fields: Any) -> None:
    """Add a forgery that puts other values into the config."""

    def forge(forger: Forger) -> None:
        forger.config |= fields
        forger.seal()

    add(name, forged, forge)


def gate_changed(name: str, forged: str, *, features: tuple[str, ...] = (), **fields: Any) -> None:
    """Add a forgery that puts other values into the config's gate."""

    def forge(forger: Forger) -> None:
        forger.config["gate"] |= fields
        forger.config["required_features"] = list(features)
        forger.seal()

    add(name, forged, forge)


def spelled(name: str, forged: str, respell: Callable[[Json], bytes]) -> None:
    """Add a forgery of the config's bytes."""

    def forge(forger: Forger) -> None:
        forger.seal()
        forger.put(CONFIG, respell(forger.config))

    add(name, forged, forge)


def replaced(old: str, new: str) -> Callable[[Json], bytes]:
    """Return a spelling of the config with one text in place of another."""

    def respell(config: Json) -> bytes:
        text = spell(config).decode()
        assert old in text, old
        return text.replace(old, new, 1).encode()

    return respell


changed("top-k-1", "`top_k` 1 in place of 2", top_k=1)
changed("top-k-0", "`top_k` 0", top_k=0)
changed("top-k-more", "`top_k` 4 of 3 members", top_k=4)
changed("top-k-true", "`top_k` is `true`", top_k=True)
changed("top-k-fraction", "`top_k` 1.5", top_k=1.5)
changed("temperature-colder", "`temperature` 0.01 in place of 1", temperature=0.01)
changed("temperature-zero", "`temperature` 0", temperature=0)
changed("temperature-text", 'the text "1" as `temperature`', temperature="1")
changed(
    "base-other",
    "another base and revision in the config",
    base_model_name_or_path="evil/base",
    revision="main",
)
changed("task-other", "`task_type` of a classifier", task_type="SEQ_CLS")
changed("format-text", 'the text "1" as `meteora_format`', meteora_format="1")
changed("format-fraction", "`meteora_format` 1.0", meteora_format=1.0)
changed("format-true", "`meteora_format` is `true`", meteora_format=True)
changed("format-2", "`meteora_format` 2", meteora_format=2)
changed("format-null", "`meteora_format` is `null`", meteora_format=None)
changed("format-list", "`meteora_format` is a list", meteora_format=[1])
changed(
    "features-needless",
    "known features that are not needed",
    required_features=["gate-scope", "gate-sources"],
)
changed("features-unknown", "a feature that is not known", required_features=["x-new"])
changed("features-text", "a text as the list of features", required_features="gate-scope")
changed("peft-type-lora", "`peft_type` of a plain LoRA", peft_type="LORA")
changed("rank-alignment-16", "`rank_alignment` 16 in place of 8", rank_alignment=16)
changed(
    "keys-of-code",
    "`trust_remote_code`, `auto_mapping` and another key that no reader knows",
    auto_mapping={"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"},
    trust_remote_code=True,
    runtime_config={"x": 1},
)
changed(
    "auto-mapping-of-code",
    "`auto_mapping` names a module of Python that starts programs",
    auto_mapping={"base_model_class": "Popen", "parent_library": "subprocess"},
)

gate_changed("scope-without-feature", "scope `prompt`, and the feature for it is not named", scope="prompt")
gate_changed("scope-prompt", "scope `prompt` in place of `token`", features=("gate-scope",), scope="prompt")
gate_changed(
    "abstain-always",
    "a threshold of 1, so that the base alone answers",
    features=("gate-abstain", "gate-scope"),
    scope="prompt",
    abstain=1.0,
)
gate_changed("abstain-by-token", "a threshold for the scope `token`", features=("gate-abstain",), abstain=0.5)
gate_changed("kind-linear", "gate of kind `linear`, still called `arrow`", kind="linear")
gate_changed("eps-zero", "`eps` 0", eps=0)
gate_changed("eps-other", "`eps` 0.5, which a gate of kind `absolute` does not use", eps=0.5)
gate_changed(
    "initialisation-other",
    "gate called drawn at random, with the values of `arrow`",
    kind="linear",
    initialisation={"method": "normal", "seed": 0},
)
gate_changed(
    "source-outside",
    "routing taken from a module that is not a target",
    features=("gate-sources",),
    sources={"model.layers.0.self_attn.q_proj": "model.layers.0.mlp"},
)

spelled("key-twice", "`top_k` twice, 2 and then 1", replaced('"top_k": 2', '"top_k": 2,\n  "top_k": 1'))
spelled("key-twice-within", "`rank` of a member twice", replaced('"rank": 4', '"rank": 4,\n      "rank": 8'))
spelled(
    "key-twice-escaped",
    "`top_k` twice, once written `\\u0074op_k`",
    replaced('"top_k": 2', '"top_k": 2,\n  "\\u0074op_k": 1'),
)
spelled("temperature-nan", "`temperature` is `NaN`", replaced('"temperature": 1.0', '"temperature": NaN'))
spelled("temperature-overflow", "`temperature` 1e999", replaced('"temperature": 1.0', '"temperature": 1e999'))
spelled("integer-of-5000-digits", "`top_k` of 5000 digits", replaced('"top_k": 2', f'"top_k": {"2" * 5000}'))
spelled(
    "nested-deeply",
    "a value nested 1000 deep",
    replaced('"top_k": 2', f'"top_k": 2,\n  "z": {"[" * 1000}{"]" * 1000}'),
)
spelled(
    "config-with-mark", "a byte-order mark before the config", lambda config: b"\xef\xbb\xbf" + spell(config)
)
spelled("config-utf-16", "the config in UTF-16", lambda config: spell(config).decode().encode("utf-16"))
spelled("config-respelled", "the config on one line", lambda config: json.dumps(config).encode())
spelled("config-cut", "the config cut in the middle", lambda config: spell(config)[:700])
spelled("config-comment", "a comment in the config", lambda config: b"// fused\n" + spell(config))
spelled("config-trailing", "a second value after the config", lambda config: spell(config) + b"{}\n")


@forgery("routing taken in a circle")
def sources_in_a_circle(forger: Forger) -> None:
    q, o = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"
    forger.config["gate"]["sources"] = {q: o, o: q}
    forger.config["required_features"] = ["gate-sources"]
    forger.seal()


@forgery("a module that takes its routing from itself")
def source_of_itself(forger: Forger) -> None:
    q = "model.layers.0.self_attn.q_proj"
    forger.config["gate"]["sources"] = {q: q}
    forger.config["required_features"] = ["gate-sources"]
    forger.seal()


def take_from(forger: Forger, taker: str, source: str) -> None:
    """Let one module take the routing of another, as the format wants it."""
    forger.config["gate"]["sources"] = {taker: source}
    forger.config["required_features"] = ["gate-sources"]
    del forger.tensors[f"base_model.model.{taker}.meteora_gate"]


@forgery("routing taken from a module that runs later")
def source_that_runs_later(forger: Forger) -> None:
    take_from(forger, "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")
    forger.seal()


@forgery("routing taken from an earlier module, which the fuse did not do")
def source_added(forger: Forger) -> None:
    take_from(forger, "model.layers.1.self_attn.q_proj", "model.layers.0.self_attn.q_proj")
    forger.seal()


@forgery("`gate-sources` taken out of the required features of such a bundle")
def source_without_feature(forger: Forger) -> None:
    take_from(forger, "model.layers.1.self_attn.q_proj", "model.layers.0.self_attn.q_proj")
    forger.config["required_features"] = []
    forger.seal()


def with_path(name: str, path: str, shown: str) -> None:
    """Add a forgery with one more target module."""

    def forge(forger: Forger) -> None:
        forger.config["target_modules"] = sorted([*forger.targets, path])
        forger.seal()

    add(name, f"the target module {shown}", forge)


with_path("path-of-two-lines", "model.layers.0.self_attn.q_proj\n", "with a line end")
with_path("path-expression", ".*", "`.*`")
with_path("path-empty-part", "model..q", "`model..q`")
with_path("path-not-ascii", "mödel.q", "`mödel.q`")
with_path("path-long", "a" * 600, "of 600 letters")
with_path("path-alternatives", "model.layers.0.self_attn.(q|k)_proj", "`(q|k)_proj`")
with_path("path-suffix", "q_proj", "`q_proj`, a suffix only")


@forgery("a target module twice")
def target_twice(forger: Forger) -> None:
    forger.config["target_modules"] = sorted([*forger.targets, forger.targets[0]])
    forger.seal()


@forgery("the target modules in another order")
def targets_unsorted(forger: Forger) -> None:
    forger.config["target_modules"] = forger.targets[::-1]
    forger.seal()
