"""The page about serving: its example runs as written, but for the port, and it names every metric."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meteora_registry.runtime import LoadedBundle, load_bundle
from meteora_registry.serving.batches import LocalBackend
from meteora_registry.serving.limits import Limits
from meteora_registry.serving.metrics import Metrics
from meteora_registry.serving.names import ModelNames
from support.bundles import write_bundle
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_adapter, tiny_llama
from support.pages import example_of
from support.serving import serving
from support.source_tree import ROOT
from support.task_data import TEMPLATE, save_text_base

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
PAGE = "docs/serving.md"
MEMBERS = ("legal", "medical")


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedBundle:
    """A bundle with the members of the page."""
    members = {
        name: make_adapter(tiny_llama, tmp_path / name, seed=seed, r=4, target_modules=["q_proj"])
        for seed, name in enumerate(MEMBERS)
    }
    bundle = write_bundle(tmp_path / "bundle", members, top_k=1, scope="prompt")
    return load_bundle(bundle, save_text_base(tmp_path / "base", pad_token="<unk>", chat_template=TEMPLATE))


def test_the_example_runs_and_prints_who_answered(
    loaded: LoadedBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    limits, metrics = Limits(batches=1), Metrics()
    backend = LocalBackend(loaded, ModelNames("bundle", MEMBERS), limits, metrics)
    with serving(backend, limits, metrics) as served:
        example = example_of(PAGE, "client")
        assert "http://127.0.0.1:8000/v1" in example
        exec(example.replace("http://127.0.0.1:8000", served.url), {})
    routed, forced, plain, streamed = capsys.readouterr().out.split("\n")
    _, member, _, text = routed.split(" ", 3)
    assert member in MEMBERS
    assert forced.startswith("bundle/legal legal None w")
    assert plain.startswith("bundle/base None None w")
    assert streamed == text != ""


def test_every_metric_is_on_the_page() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    families = text_string_to_metric_families(Metrics().page().decode())
    # The library adds when each was made.
    names = [
        f"{each.name}_total" if each.type == "counter" else each.name
        for each in families
        if not each.name.endswith("_created")
    ]
    assert len(names) == 11
    assert [name for name in names if f"`{name}" not in page] == []
