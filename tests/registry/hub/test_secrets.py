"""Secrets that are hidden before text from the Hub is shown."""

from __future__ import annotations

import httpx2
import pytest

from meteora_registry.registry.hub.foreign_errors import Subject, hide_secrets, translate
from support.hub import SIGNATURE, TOKEN


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {TOKEN} was used", "token *** was used"),
        ("my own kind of token: s3cret!", "my own kind of token: ***"),
        (
            f"GET http://127.0.0.1/storage/abc?X-Signature={SIGNATURE}&Expires=1 failed",
            "GET http://127.0.0.1/storage/abc?X-Signature=***&Expires=*** failed",
        ),
        ("http://user:password@mirror/api", "http://***@mirror/api"),
        ("nothing to hide", "nothing to hide"),
    ],
    ids=["token", "another token", "signature", "password", "plain"],
)
def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cret!")
    assert hide_secrets(text) == shown


def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://user:password@mirror.example")
    error = translate(httpx2.ConnectError("connection refused"), Subject("org/legal", "v2"))
    assert (error.message, error.exit_code) == (
        "the Hub at `http://***@mirror.example` cannot be reached for `org/legal@v2`: "
        "ConnectError: connection refused",
        2,
    )
    # The same for what sends, which keeps nothing that was fetched.
    assert error.hint == "run the same command again later"
