"""Rules about the base model that a config names. The name is never opened or looked up."""

from __future__ import annotations

from ...schemas.base_name import is_local_path, is_quantised_copy, present_name
from ...schemas.finding import Severity
from ...schemas.quotation import quote
from ..config import Config
from .rule import CONFIG_FILE, Observation, Observations, rule

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
    why="a quantised copy has the shapes of the original and other weights, so the two are not one base",
    remedy="state the original base with `--base` if the adapter is to be used with it",
)
def base_is_quantised_copy(config: Config) -> Observations:
    """The base model is a quantised copy."""
    found = config.value.get("base_model_name_or_path")
    if isinstance(found, str) and is_quantised_copy(found):
        yield Observation(quote(found), "the original model", field="base_model_name_or_path")


@rule(
    "MR144",
    Config,
    Severity.WARN,
    file=CONFIG_FILE,
    why="both names are one base here, but other programs may compare names as they are written",
    remedy="nothing needs doing here; write the present name for other programs",
)
def base_was_renamed(config: Config) -> Observations:
    """The base model goes by another name today."""
    found = config.value.get("base_model_name_or_path")
    if isinstance(found, str) and (name := present_name(found)).casefold() != found.strip().casefold():
        yield Observation(quote(found), quote(name), field="base_model_name_or_path")
