"""Options and arguments that commands share."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

from ...bundle.signers import Signers
from ...schemas.document import finite_number
from ...schemas.errors import MeteoraError, UsageError
from ...schemas.gate_choices import PromptForm
from ...schemas.names import CatalogSource, parse_catalog_source
from ..face import Registry
from ..secrets import has_password
from ..settings import Settings
from ..workspace import Workspace
from .output import print_remark

if TYPE_CHECKING:
    from ..catalog.catalog import Catalog

Function = TypeVar("Function", bound=Callable[..., Any])
Result = TypeVar("Result")
# Where a command keeps that its tables are printed whole.
_WIDE = "meteora_registry.wide"
# Of tokens and items: more than any context or data set has, and what every document can hold.
MAX_COUNT = 1_000_000


def settings_of(context: click.Context) -> Settings:
    """Return the settings of a command line, read when they are first asked for.

    Raises:
        UsageError: a file of settings is malformed.
        SourceUnreadable: it cannot be read.
    """
    root = context.find_root()
    if not isinstance(root.obj, Settings):
        stated = root.params
        root.obj = Settings.read(
            stated.get("home"), stated.get("catalog"), stated.get("store"), with_project=True
        )
    return root.obj


class BaseName(click.ParamType[str]):
    """A base model: its name or folder, or a short name of the settings for it."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name that a short name stands for, and any other text as it is."""
        if ctx is None or ctx.resilient_parsing:
            # A shell completes a line: nothing is printed in the middle of it.
            return value
        return name_base(settings_of(ctx), value)


def name_base(settings: Settings, text: str) -> str:
    """Return the name that a short name of the settings stands for, with a remark; else the text."""
    alias = settings.base_aliases.get(text)
    if alias is None or alias.value is None:
        return text
    print_remark(f"note: the base `{text}` is `{alias.value}`, as the {alias.source} has it")
    return alias.value


def complete_name(
    context: click.Context, _parameter: click.Parameter, beginning: str
) -> list[CompletionItem]:
    """Return the names in the catalog that begin so, for the shell; nothing where it cannot be read."""
    names: tuple[str, ...] = read_catalog(context, lambda catalog: catalog.list_names(beginning), default=())
    return [CompletionItem(name) for name in names]


def read_catalog(context: click.Context, read: Callable[[Catalog], Result], *, default: Result) -> Result:
    """Return what a shell completes with, and the default where there is no catalog or it cannot be read."""
    try:
        home = settings_of(context).place
        if home.catalog_url is None and not home.catalog_file.exists():
            return default
        with Workspace(home) as registry:
            return read(registry.catalog)
    # A shell shows whatever is printed in the middle of the line that is being typed.
    except (MeteoraError, OSError):
        return default


def complete_folder(
    _context: click.Context, _parameter: click.Parameter, beginning: str
) -> list[CompletionItem]:
    """Let the shell complete folders."""
    return [CompletionItem(beginning, type="dir")]


def complete_name_or_folder(
    context: click.Context, parameter: click.Parameter, beginning: str
) -> list[CompletionItem]:
    """Return the names in the catalog that begin so, and let the shell complete folders too."""
    # Bash forgets what it was given before the request for folders.
    return [*complete_folder(context, parameter, beginning), *complete_name(context, parameter, beginning)]


def count_option(
    flag: str, text: str, *, default: int | None = None, most: int = MAX_COUNT, metavar: str = "N"
) -> Callable[[Function], Function]:
    """Return an option that takes a number from 1 to ``most``."""
    return click.option(
        flag,
        metavar=metavar,
        type=click.IntRange(1, most),
        default=default,
        show_default=default is not None,
        help=text,
    )


bundle_argument = click.argument(
    "bundle", metavar="FOLDER|NAME[@VERSION|@ALIAS]", shell_complete=complete_name_or_folder
)
base_option = click.option(
    "--base",
    type=BaseName(),
    metavar="ORG/MODEL|FOLDER",
    help="The base model, with weights and tokenizer. Default: the one that the bundle was fused for.",
)
base_folder_option = click.option(
    "--base-folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where the base's files are, apart from what it is called.",
)
system_option = click.option(
    "--system", metavar="TEXT", help="A system prompt, for a base whose chat template takes one."
)
max_tokens_option = click.option(
    "--max-tokens",
    type=click.IntRange(1, MAX_COUNT),
    default=512,
    show_default=True,
    help="The longest answer, in tokens; it also ends where the base's context does.",
)
_signer_options = (
    click.option(
        "--require-signer",
        "identities",
        metavar="IDENTITY@ISSUER",
        multiple=True,
        help="Require a signature that Sigstore confirms to be by this identity. May be repeated.",
    ),
    click.option(
        "--public-key",
        "public_keys",
        metavar="FILE",
        type=click.Path(path_type=Path),
        multiple=True,
        help="Require a signature by the owner of this key. May be repeated.",
    ),
    click.option(
        "--signers",
        "signers_file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Require a signature by one of the signers in this TOML file. Default: METEORA_SIGNERS.",
    ),
)
follow_links_option = click.option(
    "--follow-links",
    is_flag=True,
    help="Read a config and weights that are symbolic links to other places.",
)
data_option = click.option(
    "--data",
    metavar="FOLDER",
    required=True,
    type=click.Path(path_type=Path),
    help="Has a file MEMBER.jsonl for every member.",
)


def parse_share(context: click.Context, parameter: click.Parameter, text: str) -> float | None:
    """Return the share above 0 and below 1 that a text such as `5%` or `0.05` states; None for `none`."""
    if text == "none":
        return None
    try:
        number = finite_number(text.removesuffix("%").strip())
    except ValueError:
        number = 0.0
    share = number / 100 if text.endswith("%") else number
    if not 0 < share < 1:
        raise click.BadParameter(
            f"`{text}` is not a share such as `5%` or `0.05`, nor `none`", context, parameter
        )
    return share


def as_option(default: PromptForm | None, text: str) -> Callable[[Function], Function]:
    """Return the option that chooses the form in which prompts are read."""
    return click.option(
        "--as",
        "form",
        type=click.Choice(get_args(PromptForm)),
        default=default,
        show_default=default is not None,
        help=text,
    )


out_option = click.option("--out", required=True, type=click.Path(path_type=Path), help="The new folder.")
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=lambda: min(4, os.cpu_count() or 1),
    show_default="up to 4",
    help="How many blobs are read at once.",
)


def signer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name accepted signers; the function gets them as ``signers``."""

    def call(
        *arguments: Any,
        identities: tuple[str, ...],
        public_keys: tuple[Path, ...],
        signers_file: Path | None,
        **options: Any,
    ) -> Any:
        given = Signers.of(public_keys=public_keys, identities=identities)
        more = Signers() if signers_file is None else Signers.read(signers_file)
        return function(*arguments, signers=(given | more) or None, **options)

    decorated = functools.update_wrapper(call, function)
    for option in reversed(_signer_options):
        decorated = option(decorated)
    return decorated


class CatalogSourceType(click.ParamType[CatalogSource]):
    """``NAME``, ``NAME@3`` or ``NAME@alias``."""

    name = "name"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names in the catalog that begin so."""
        return complete_name(ctx, param, incomplete)

    def convert(
        self, value: str | CatalogSource, param: click.Parameter | None, ctx: click.Context | None
    ) -> CatalogSource:
        """Return what the text names; raise ``UsageError`` if it is malformed."""
        return parse_catalog_source(value) if isinstance(value, str) else value


class CommandRegistry(Registry):
    """The registry of one command: its warnings are remarks on stderr."""

    def __init__(self, settings: Settings) -> None:
        Workspace.__init__(self, settings.place)
        if settings.catalog.source == "--catalog" and has_password(settings.catalog.value or ""):
            self.warn(
                "everyone on this machine can see the password in `--catalog`: put it into a password file "
                "or a service file (docs/postgresql.md)"
            )

    def warn(self, message: str) -> None:
        """Print the warning."""
        print_remark(f"warning: {message}")


def pass_registry(function: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the registry of the home that the command line names; it is closed when the command ends."""

    @click.pass_context
    def call(context: click.Context, *arguments: Any, **options: Any) -> Any:
        registry = CommandRegistry(settings_of(context))
        return context.invoke(function, context.with_resource(registry), *arguments, **options)

    return functools.update_wrapper(call, function)


def confirm(question: str, *, yes: bool) -> bool:
    """Return whether the user agrees, or did so with ``--yes``.

    Raises:
        UsageError: stdin is not a terminal, so there is no one to ask.
    """
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(
            "this needs a confirmation, and stdin is not a terminal", hint="add `--yes`; nothing was changed"
        )
    if click.confirm(question, err=True):
        return True
    print_remark("nothing was changed")
    return False


def format_choice(
    formats: Iterable[str],
    name: str = "output_format",
    *,
    text: str = "How the data on stdout is written.",
    callback: Callable[[click.Context, click.Parameter, str], object] | None = None,
) -> Callable[[Function], Function]:
    """Return the option ``--format``, by default text, whose value is passed as ``name``."""
    return click.option(
        "--format",
        name,
        type=click.Choice(list(formats)),
        default="text",
        show_default=True,
        callback=callback,
        help=text,
    )


# Passed as ``as_json``.
format_option = format_choice(
    ("text", "json"), "as_json", callback=lambda _context, _parameter, value: value == "json"
)


def wide_option(function: Function) -> Function:
    """Add ``--wide``, which ``print_table`` obeys."""
    return click.option(
        "--wide",
        is_flag=True,
        expose_value=False,
        callback=lambda context, _parameter, value: context.meta.update({_WIDE: value}),
        help="Print tables whole, however wide the terminal is.",
    )(function)


def is_wide() -> bool:
    """Return whether the command that runs was called with ``--wide``."""
    return bool(_meta().get(_WIDE))


def offers_wide() -> bool:
    """Return whether the command that runs has ``--wide``."""
    return _WIDE in _meta()


def _meta() -> dict[str, Any]:
    context = click.get_current_context(silent=True)
    return context.meta if context is not None else {}


def page_options(function: Function) -> Function:
    """Add the options ``--limit`` and ``--after`` of a list that comes in pages."""
    limit = click.option(
        "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="The most on a page."
    )
    after = click.option("--after", metavar="CURSOR", help="The page after the one that printed this cursor.")
    return limit(after(function))


def layout_option(function: Function) -> Function:
    """Add the option ``--layout``, which has one value so far."""
    return click.option(
        "--layout",
        type=click.Choice(["official"]),
        required=True,
        help="official: that of the MeteoRA authors' own code.",
        expose_value=False,
    )(function)
