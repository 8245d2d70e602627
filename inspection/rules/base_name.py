"""Rules about the base model that a config names. The name is never opened or looked up."""

from __future__ import annotations

import re

from ...schemas.finding import Severity
from ...schemas.quotation import quote
from ..config import Config
from .rule import CONFIG_FILE, Observation, Observations, rule

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_LOCAL_START = re.compile(r"[./~\\]|[A-Za-z]:[\\/]|file:")
_QUANTISED = re.compile(
    r".*[-_.](bnb[-_.]?[48]bit|[48]bit|gptq|awq|gguf|exl2|int[48]|fp8|w4a16|quantized)([-_.].*)?",
    re.IGNORECASE,
)
# Names that the Hub redirects: models from before organisations, and organisations that moved.
_RENAMED = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
    "distilbert-base-uncased": "distilbert/distilbert-base-uncased",
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "bert-base-cased": "google-bert/bert-base-cased",
    "bert-large-uncased": "google-bert/bert-large-uncased",
    "roberta-base": "FacebookAI/roberta-base",
    "roberta-large": "FacebookAI/roberta-large",
    "xlm-roberta-base": "FacebookAI/xlm-roberta-base",
    "xlm-roberta-large": "FacebookAI/xlm-roberta-large",
    "t5-small": "google-t5/t5-small",
    "t5-base": "google-t5/t5-base",
    "t5-large": "google-t5/t5-large",
}
_RENAMED_ORGANISATIONS = {"THUDM": "zai-org", "meta-llama/Meta-Llama-3.1": "meta-llama/Llama-3.1"}
_STATE_IT = "state the base with `--base`, or write its Hub id into the config"


@rule(
    "MR141",
    Config,
    Severity.WARN,
    file=CONFIG_FILE,
    why="the adapter's base is unknown, and on another base of these shapes it is silently wrong",
    remedy=_STATE_IT,
)
def base_is_missing(config: Config) -> Observations:
    """The config names no base model."""
    found = config.value.get("base_model_name_or_path")
    if not isinstance(found, str) or not found.strip():
        yield Observation(quote(found), "a Hub id", field="base_model_name_or_path")


@rule(
    "MR142",
    Config,
    Severity.WARN,
    file=CONFIG_FILE,
    why="the path exists only on the machine that trained the adapter; it is never opened here",
    remedy=_STATE_IT,
)
def base_is_local_path(config: Config) -> Observations:
    """The base model is a local path."""
    found = config.value.get("base_model_name_or_path")
    if isinstance(found, str) and is_local_path(found):
        yield Observation(quote(found), "a Hub id such as `org/name`", field="base_model_name_or_path")


@rule(
    "MR143",
    Config,
    Severity.WARN,
    file=CONFIG_FILE,
    why="adapters of one base go by several names; a quantised copy has the same shapes and other weights",
    remedy="state the original base with `--base` if the adapter is to be used with it",
)
def base_is_quantised_copy(config: Config) -> Observations:
    """The base model is a quantised copy."""
    found = config.value.get("base_model_name_or_path")
    if isinstance(found, str) and not is_local_path(found) and _QUANTISED.fullmatch(found[:512]):
        yield Observation(quote(found), "the original model", field="base_model_name_or_path")


@rule(
    "MR144",
    Config,
    Severity.WARN,
    file=CONFIG_FILE,
    why="the Hub redirects the old name, but names are compared as they are written",
    remedy="write the present name, or state it with `--base`",
)
def base_was_renamed(config: Config) -> Observations:
    """The base model goes by another name today."""
    found = config.value.get("base_model_name_or_path")
    if isinstance(found, str) and (name := present_name(found)):
        yield Observation(quote(found), quote(name), field="base_model_name_or_path")


def is_local_path(name: str) -> bool:
    """Return whether a base's name is a path of some machine: it begins as one, or is not a Hub id."""
    if not name.strip():
        return False
    if _LOCAL_START.match(name) or "\\" in name:
        return True
    return "/" in name and not _REPOSITORY.fullmatch(name[:512])


def present_name(name: str) -> str | None:
    """Return the name that the Hub redirects to, if this is a known old one."""
    if name in _RENAMED:
        return _RENAMED[name]
    for old, new in _RENAMED_ORGANISATIONS.items():
        if name == old or name.startswith((f"{old}/", f"{old}-")):
            return new + name.removeprefix(old)
    return None
