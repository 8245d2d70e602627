"""``search``: adapters by what the catalog knows of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import click

from ..catalog.query import AdapterQuery, Order
from ..catalog.records import AdapterSummary
from ..face import Registry
from .groups import examples
from .json_output import print_json
from .list import ALIASES, BASE, DTYPE, NAME, RANK, SIZE, STATUS, TAGS, VERSION, describe_adapter
from .output import count, print_remark
from .parameters import BaseName, format_option, page_options, pass_registry, wide_option
from .tables import EMPTY, Column, print_table

_LICENSE = Column("LICENSE", gives_way=5)
_ADDED = Column("ADDED", gives_way=8)
_COLUMNS = (
    NAME,
    STATUS,
    VERSION,
    BASE,
    RANK,
    SIZE,
    _LICENSE,
    _ADDED,
    DTYPE,
    ALIASES,
    TAGS,
)
_SIZE = re.compile(r"(?P<number>[0-9]{1,15})\s*(?P<unit>|kB|MB|GB|TB)", re.IGNORECASE)
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
# The condition that each word of `--verdict` is.
_VERDICTS = {
    "sound": {"sound": True},
    "broken": {"sound": False},
    "fusable": {"fusable": True},
    "not-fusable": {"fusable": False},
}


class SizeType(click.ParamType[int]):
    """A number of bytes: ``4096``, ``20MB``, in powers of 1000."""

    name = "size"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(value.strip())
        if found is None:
            self.fail(f"`{value[:80]}` is not a size, expected such as `4096` or `20MB`", param, ctx)
        return int(found["number"]) * _UNITS[found["unit"].lower()]


def _in_utc(_context: click.Context, _parameter: click.Parameter, value: datetime | None) -> datetime | None:
    return value.replace(tzinfo=UTC) if value else None


_DATE = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@click.command(
    "search",
    epilog=examples(
        "search summarise --base meta-llama/Llama-3.1-8B",
        "search --target q_proj --min-rank 8 --max-rank 32 --verdict fusable",
        "search --tag candidate --sort date --descending --limit 10 --format json",
    ),
)
@click.argument("words", metavar="[WORD]...", nargs=-1)
@click.option(
    "--base",
    type=BaseName(),
    metavar="ORG/MODEL",
    help="The base model, in any spelling that the catalog has learned.",
)
@click.option("--min-rank", type=click.IntRange(0), help="At least this rank in some module.")
@click.option("--max-rank", type=click.IntRange(0), help="At most this rank in every module.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="MODULE",
    help="Touches modules called so, such as q_proj; may be repeated.",
)
@click.option("--tag", "tags", multiple=True, help="Has this tag; may be repeated.")
@click.option("--license", "license_name", help="States this licence.")
@click.option("--verdict", type=click.Choice(list(_VERDICTS)), help="Was judged so.")
@click.option(
    "--min-size", "min_bytes", type=SizeType(), help="At least so many bytes of weights; such as 20MB."
)
@click.option("--max-size", "max_bytes", type=SizeType(), help="At most so many bytes of weights.")
@click.option("--added-from", type=_DATE, callback=_in_utc, help="Added on this day or later, in UTC.")
@click.option("--added-before", type=_DATE, callback=_in_utc, help="Added before this day, in UTC.")
@click.option(
    "--all-versions", is_flag=True, help="Judge every version, and not only the latest of each name."
)
@click.option(
    "--sort",
    type=click.Choice(["name", "date", "size", "rank"]),
    default="name",
    show_default=True,
    help="What the list is ordered by.",
)
@click.option("--descending", is_flag=True, help="The last, the youngest or the largest first.")
@page_options
@wide_option
@format_option
@pass_registry
def command(
    registry: Registry,
    /,
    *,
    words: tuple[str, ...],
    license_name: str | None,
    verdict: str | None,
    sort: str,
    as_json: bool,
    **conditions: object,
) -> None:
    """Find adapters that meet every condition given.

    Each WORD begins some word of the name, the tags, the origin, the base, the licence or the task,
    whatever the case. Where there are more than the limit, the cursor of the next page is printed.
    """
    query = AdapterQuery(
        text=" ".join(words) or None,
        license=license_name,
        order=Order(sort),
        # click has made every value of the type that its option states.
        **(conditions | (_VERDICTS[verdict] if verdict else {})),  # type: ignore[arg-type]
    )
    page = registry.search(query)
    if as_json:
        print_json({"adapters": page.items, "next": page.next})
    elif page.items:
        print_table(_COLUMNS, list(map(_row, page.items)), total=count(page.items, "adapter"))
    else:
        print_remark("no adapter meets all of this")
    if page.next is not None and not as_json:
        print_remark(f"there are more: --after {page.next}")


def _row(adapter: AdapterSummary) -> list[str]:
    cells = describe_adapter(adapter)
    cells |= {_LICENSE: adapter.license or EMPTY, _ADDED: f"{adapter.created_at:%Y-%m-%d}"}
    return [cells[column] for column in _COLUMNS]
