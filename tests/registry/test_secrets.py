"""The visible part of a URL, and of a text that may hold a secret."""

from __future__ import annotations

import pytest

from meteora_registry.registry.secrets import hide_secrets, mask_url, mask_urls, remember_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:secret@host/name", "postgresql://user:***@host/name"),
        ("postgresql://:secret@host/name", "postgresql://:***@host/name"),
        ("postgresql://user@host:5432/name", "postgresql://user@host:5432/name"),
        ("postgresql://user@[::1]:5432/name", "postgresql://user@[::1]:5432/name"),
        ("postgresql+psycopg://u:s@h/n", "postgresql+psycopg://u:***@h/n"),
        ("postgresql://u@h/n?password=s&host=/run&x=s", "postgresql://u@h/n?password=***&host=/run&x=***"),
        ("postgresql://u@h/n?sslmode=require;token=s", "postgresql://u@h/n?sslmode=require&token=***"),
        ("postgresql://u@h/n?secret", "postgresql://u@h/n?***"),
        ("postgresql://u@h/n?%70assword=secret", "postgresql://u@h/n?***"),
        ("postgresql://u@h/n?options=-c%20a.b%3Dsecret", "postgresql://u@h/n?options=***"),
        ("s3://bucket/x?token=s#secret", "s3://bucket/x?token=***#***"),
        ("https://secret@host/x", "https://***@host/x"),
        ("http://host:80/a@b?email=a@b&token=s", "http://host:80/a@b?email=***&token=***"),
        ("hf://org/name@v2/folder", "hf://org/name@v2/folder"),
        ("sqlite:////folder/catalog.db", "sqlite:////folder/catalog.db"),
        ("/folder/of:things@home", "/folder/of:things@home"),
    ],
)
def test_url_shows_only_what_is_harmless(url: str, shown: str) -> None:
    assert mask_url(url) == shown
    assert mask_urls(f"cannot open `{url}`: no") == f"cannot open `{shown}`: no"


@pytest.mark.parametrize("secret", ["pa/ss", "pa?ss", "pa#ss", "p@ss", "pa:ss", "p@s/s", "pa?a=b", "%2fss"])
@pytest.mark.parametrize("scheme", ["postgresql", "s3", "https"])
def test_password_that_is_not_escaped_is_hidden_all_the_same(scheme: str, secret: str) -> None:
    user = "user:***" if scheme == "postgresql" else "***"
    assert mask_url(f"{scheme}://user:{secret}@host/name") == f"{scheme}://{user}@host/name"


@pytest.mark.parametrize(
    "url",
    ["postgresql://host:secret/name", "postgresql://user@[::1]:secret/name", "http://user:secret@[::1/x"],
    ids=["no port", "no port behind an address", "broken address"],
)
def test_what_is_in_the_wrong_place_is_hidden(url: str) -> None:
    assert "secret" not in mask_url(url)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("token hf_0123456789abcdefABCD was used", "token *** was used"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("see https://host/x?sig=a and http://u:p@h/", "see https://host/x?sig=*** and http://***@h/"),
        ("the package hf_transfer is missing", "the package hf_transfer is missing"),
        ("3 blobs, 2 of them at 10:30 in a@b", "3 blobs, 2 of them at 10:30 in a@b"),
    ],
    ids=["token", "bearer", "URLs", "no token", "plain"],
)
def test_text_is_shown_without_tokens_and_secrets_of_urls(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("HTTPS_PROXY", "http://user:sentinel-one@proxy:80", "cannot log in with sentinel-one"),
        ("https_proxy", "http://user:sentinel-one@proxy:80", "cannot log in with sentinel-one"),
        ("PGPASSWORD", "sentinel-one", "bad value 'sentinel-one'"),
        ("METEORA_CATALOG", "postgresql://u@h/n?sslkey=sentinel-one", "no file sentinel-one"),
        ("METEORA_STORE", "s3://key:sentinel%2Done@bucket", "no key sentinel-one or sentinel%2Done"),
    ],
)
def test_secret_of_the_environment_is_hidden_wherever_it_is_quoted(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, text: str
) -> None:
    monkeypatch.setenv(variable, value)
    shown = hide_secrets(text)
    assert "***" in shown
    assert "sentinel" not in shown


def test_secret_of_a_url_that_was_used_is_hidden_as_a_whole_word_if_it_is_short() -> None:
    remember_url("postgresql://user:words@host/name")
    assert hide_secrets("these are words, or swords") == "these are ***, or swords"


def test_the_revision_of_a_repository_is_shown() -> None:
    for origin in ("hf://org/name@abc", "hf://name@abc"):
        assert hide_secrets(f"`{origin}` cannot be read") == f"`{origin}` cannot be read"
        assert mask_url(origin) == origin


def test_what_a_url_shows_elsewhere_is_not_hidden() -> None:
    remember_url("postgresql://postgres:postgres@host/postgres")
    assert hide_secrets('no user "postgres"') == 'no user "postgres"'
