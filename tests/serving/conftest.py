"""One server for the tests that only ask it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meteora_registry.runtime import LoadedBundle
from support.serving import Serving, load_served, serving_bundle


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedBundle:
    """A bundle of three members that decides for each prompt."""
    return load_served(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def served(loaded: LoadedBundle) -> Iterator[Serving]:
    """A server of it."""
    with serving_bundle(loaded) as found:
        yield found
