"""A policy is stricter than the rules, and never laxer where a result depends on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.inspection.comparison import apply_policy
from meteora_registry.inspection.policy import check_policy
from meteora_registry.schemas.errors import InvalidDocument
from meteora_registry.schemas.finding import Effect, Severity
from meteora_registry.schemas.policy import Policy
from support.adapters import AdapterFiles
from support.models import make_adapter, tiny_llama

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> AdapterFiles:
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    folder = make_adapter(tiny_llama, tmp_path_factory.mktemp("made"), seed=1, base="org/base", **options)
    files = AdapterFiles.read(folder)
    files.extra["README.md"] = b"---\nlicense: mit\n---\n# card\n"
    return files


def policy(text: str) -> Policy:
    return Policy.from_toml(f"meteora_policy = 1\n{text}".encode(), what="policy.toml")


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("", []),
        ('allowed_bases = ["org/base"]', []),
        ('allowed_bases = ["org/*"]', []),
        ('allowed_bases = ["orga/*", "base"]', ["MR701"]),
        ('allowed_licenses = ["MIT"]', []),
        ('allowed_licenses = ["apache-2.0"]', ["MR702"]),
        ("max_rank = 4", []),
        ("max_rank = 3", ["MR703"]),
        ("max_weights_bytes = 100", ["MR704"]),
        ('allowed_targets = ["q_proj", "v_proj"]', []),
        ('allowed_targets = ["q_proj"]', ["MR705"]),
        ('allowed_dtypes = ["F32"]', []),
        ('allowed_dtypes = ["F16"]', ["MR706"]),
    ],
)
def test_policy_refuses_what_it_does_not_allow(
    text: str, codes: list[str], files: AdapterFiles, tmp_path: Path
) -> None:
    inspection = inspect_adapter(files.write(tmp_path))
    findings = apply_policy(inspection, inspection.findings, policy(text))
    assert [finding.code for finding in findings] == codes
    assert all(finding.effect is Effect.POLICY for finding in findings)
    assert inspection.verdict.of(findings).fusable


def test_taste_can_be_raised_lowered_and_switched_off(files: AdapterFiles, tmp_path: Path) -> None:
    files.config["base_model_name_or_path"] = None
    inspection = inspect_adapter(files.write(tmp_path))
    files.config["base_model_name_or_path"] = "org/base"

    def severities(setting: str) -> list[tuple[Severity, Effect]]:
        changed = apply_policy(inspection, inspection.findings, policy(f'[severity]\nMR141 = "{setting}"'))
        return [(finding.severity, finding.effect) for finding in changed]

    assert severities("refuse") == [(Severity.REFUSE, Effect.POLICY)]
    assert severities("note") == [(Severity.NOTE, Effect.NONE)]
    assert severities("off") == []


def test_what_protects_a_result_stays() -> None:
    with pytest.raises(InvalidDocument) as caught:
        check_policy(policy('[severity]\nMR401 = "off"\nMR404 = "refuse"\nMR999 = "note"'))
    assert caught.value.problems == (
        "severity.MR401: `A tensor holds NaN or infinity` protects the result and stays as it is",
        "severity.MR999: there is no such rule",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "max_rnk = 3",
            "`policy.toml` breaks its schema: max_rnk: there is no such key, did you mean `max_rank`?",
        ),
        (
            "max_rank = 0",
            "`policy.toml` breaks its schema: "
            "max_rank: input should be greater than or equal to 1, found `0`",
        ),
        ("x = ", "`policy.toml` is not TOML: Invalid value (at end of document)"),
    ],
)
def test_malformed_policy_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        policy(text)
    assert caught.value.message == message


def test_published_schema_is_current() -> None:
    published = json.loads((DOCS / "formats" / "policy.schema.json").read_text())
    assert (
        published == {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Policy.model_json_schema()
    )


def test_example_in_the_docs_is_a_policy() -> None:
    text = (DOCS / "formats" / "policy.md").read_text()
    example = text.split("```toml\n")[1].split("```")[0]
    check_policy(Policy.from_toml(example.encode(), what="the example"))
