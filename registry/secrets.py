"""URLs as people may see them, and text without what must not be shown.

A URL shows scheme, host, path and the query values whose names are known to be harmless; everything else
becomes ``***``. Text of libraries is searched for URLs and tokens, and for the secrets of the URLs that this
process was given, which a library may quote without the URL around them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote_plus

HIDDEN = "***"
# Options of a PostgreSQL connection that give place and manner, but no access. `options` is not among them:
# it may set anything.
_SAFE_QUERY_NAMES = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "dbname",
        "gssencmode",
        "host",
        "hostaddr",
        "keepalives",
        "load_balance_hosts",
        "passfile",
        "port",
        "service",
        "servicefile",
        "sslmode",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    }
)
# The user of a database is not a secret; elsewhere a token may be in its place.
_SHOW_USER = re.compile(r"postgres(ql)?(\+\w+)?|sqlite")
_NAME = re.compile(r"[A-Za-z_][\w.-]*")
# A URL that was taken for a path has one slash in place of two.
_URL = re.compile(
    r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]+)(?P<slashes>:/+)(?P<rest>[^/\s'\"`<>\\][^\s'\"`<>\\]*)"
)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=\bBearer )[^\s'\"]+", re.IGNORECASE)
_PASSWORDS = ("password=", "sslpassword=")
_HOST = r"\[[^\]]*\]?|[^:\[]*"
_HOST_AND_PORT = re.compile(rf"({_HOST})(:\d{{0,5}})?")
_END_OF_AUTHORITY = re.compile("[/?#]")
# What clients of `serve` must send.
API_KEY_VARIABLE = "METEORA_API_KEY"
# What engines behind `serve` ask for.
ENGINE_KEY_VARIABLE = "METEORA_ENGINE_KEY"
# Variables whose value is a secret, and those whose value is a URL that may hold one.
_SECRET_VARIABLES = (
    API_KEY_VARIABLE,
    ENGINE_KEY_VARIABLE,
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "GITHUB_TOKEN",
    "PGPASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
_URL_VARIABLES = tuple(
    name
    for upper in ("METEORA_CATALOG", "METEORA_STORE", "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    for name in (upper, upper.lower())
)
# Shorter ones would garble every message, or, below the second length, every word that they are part of.
_MIN_SECRET = 4
_MIN_PART = 8

_remembered: set[str] = set()


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a URL after ``scheme://``, separated so that no secret is taken for another part."""

    has_user_info: bool
    user: str
    password: str
    misplaced: str
    place: str
    query: tuple[str, ...]
    fragment: str


def mask_url(url: str) -> str:
    """Return a URL without passwords, tokens and unknown query values; other text is returned as it is."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}://{_mask(scheme, rest)}" if separator else url


def mask_urls(text: str) -> str:
    """Return text in which each URL is masked as by ``mask_url``, and each token."""
    if ":/" in text:
        text = _URL.sub(
            lambda found: f"{found['scheme']}{found['slashes']}{_mask(found['scheme'], found['rest'])}", text
        )
    return _TOKEN.sub(HIDDEN, text)


def hide_secrets(text: str) -> str:
    """Return text for people without URLs' secrets, tokens, and every secret known to this process."""
    text = mask_urls(text)
    for secret in sorted(_known_secrets(), key=len, reverse=True):
        if secret in text:
            text = _replace(text, secret)
    return text


def has_password(url: str) -> bool:
    """Return whether a URL holds a password, before its host or among its query values."""
    _, separator, rest = url.partition("://")
    if not separator:
        return False
    parts = _take_apart(rest)
    return bool(parts.password) or any(
        pair.startswith(_PASSWORDS) and pair[-1] != "=" for pair in parts.query
    )


def remember_url(url: str) -> None:
    """Take note of the secrets of a URL, for ``hide_secrets``."""
    _remembered.update(_secrets_of(url))


def remember_secret(secret: str | None) -> None:
    """Take note of a secret, for ``hide_secrets``."""
    if secret:
        _remembered.add(secret)


def _known_secrets() -> set[str]:
    known = set(_remembered)
    for name in _SECRET_VARIABLES:
        known.add(os.environ.get(name, ""))
    for name in _URL_VARIABLES:
        known |= _secrets_of(os.environ.get(name, ""))
    return {secret for secret in known if len(secret) >= _MIN_SECRET}


def _secrets_of(url: str) -> set[str]:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return set()
    parts = _take_apart(rest)
    secrets = {parts.password, parts.misplaced, parts.fragment}
    if not _SHOW_USER.fullmatch(scheme):
        secrets.add(parts.user)
    for pair in parts.query:
        name, has_value, value = pair.partition("=")
        if not has_value:
            secrets.add(name)
        elif name not in _SAFE_QUERY_NAMES:
            secrets.add(value)
    secrets |= {unquote_plus(secret) for secret in secrets}
    # A secret that the URL also shows, such as a password equal to the user's name, cannot be hidden.
    shown = {scheme, parts.user if _SHOW_USER.fullmatch(scheme) else "", *parts.place.split("/")}
    return secrets - shown


def _take_apart(rest: str) -> _Parts:
    user_info = ""
    authority = _END_OF_AUTHORITY.split(rest, maxsplit=1)[0]
    if "@" in rest and ("@" in authority or not _HOST_AND_PORT.fullmatch(authority)):
        # An unescaped password may contain any of `/?#@`: the host is behind the last `@`.
        head, question, tail = rest.partition("?")
        if "@" not in head:
            head, question, tail = rest.partition("&")
        user_info, _, place = head.rpartition("@")
        rest = f"{place}?{tail}" if question else place
    rest, _, fragment = rest.partition("#")
    place, _, query = rest.partition("?")
    user, _, password = user_info.partition(":")
    host, slash, path = place.partition("/")
    misplaced = ""
    if not _HOST_AND_PORT.fullmatch(host):
        # Text that is not a port may have been meant as a password.
        name = re.match(_HOST, host)
        end = name.end() if name else 0
        misplaced = host[end:].lstrip(":")
        place = f"{host[:end]}:{HIDDEN}{slash}{path}"
    pairs = tuple(pair for pair in re.split("[&;]", query) if pair)
    return _Parts(bool(user_info), user, password, misplaced, place, pairs, fragment)


def _mask(scheme: str, rest: str) -> str:
    if scheme == "hf":
        # A repository at a revision, behind `@`; it has no place for a user.
        return rest
    parts = _take_apart(rest)
    shown = parts.place
    if parts.has_user_info:
        user = f"{parts.user}:{HIDDEN}" if parts.password else parts.user
        shown = f"{user if _SHOW_USER.fullmatch(scheme) else HIDDEN}@{shown}"
    if parts.query:
        shown += "?" + "&".join(map(_mask_pair, parts.query))
    return shown + (f"#{HIDDEN}" if parts.fragment else "")


def _mask_pair(pair: str) -> str:
    name, has_value, _ = pair.partition("=")
    if name in _SAFE_QUERY_NAMES:
        return pair
    return f"{name}={HIDDEN}" if has_value and _NAME.fullmatch(name) else HIDDEN


def _replace(text: str, secret: str) -> str:
    if len(secret) >= _MIN_PART:
        return text.replace(secret, HIDDEN)
    return re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
