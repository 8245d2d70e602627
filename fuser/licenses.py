"""The combined licence of several members; not legal advice.

Licences are ordered by what they forbid. The most restrictive is named; where one is not known, or
cannot be placed in that order, the whole is not known either. Each member stays under its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

UNKNOWN = "unknown"
OTHER = "other"
SEVERAL = "several"

# From the least restrictive group to the most. The names are the Hub's.
_GROUPS = (
    "cc0-1.0 pddl unlicense wtfpl",
    "afl-3.0 apache-2.0 artistic-2.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc-by-2.0 "
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cdla-permissive-1.0 cdla-permissive-2.0 ecl-2.0 etalab-2.0 isc mit ms-pl "
    "ncsa odc-by ofl-1.1 postgresql zlib",
    "agpl-3.0 cc-by-sa-3.0 cc-by-sa-4.0 cdla-sharing-1.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 gpl gpl-2.0 "
    "gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 mpl-2.0 odbl osl-3.0",
    "bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m creativeml-openrail-m gemma llama2 "
    "llama3 llama3.1 llama3.2 llama3.3 llama4 openrail openrail++",
    "cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0",
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nd-4.0",
)
_WORDS = (
    "public domain",
    "attribution",
    "share alike",
    "restricted uses",
    "no commercial use",
    "no changed versions",
)
_GROUP_OF = {name: group for group, names in enumerate(_GROUPS) for name in names.split()}


@dataclass(frozen=True, slots=True)
class CombinedLicense:
    """``identifier`` and ``name`` as a card's front matter takes them; ``statement`` for people."""

    identifier: str
    name: str | None
    statement: str


def combine_licenses(licenses: Iterable[str | None]) -> CombinedLicense:
    """Combine the licences of the parts into that of the whole; None is an unknown licence."""
    found = [None if each is None else each.strip().lower() or None for each in licenses]
    known = sorted({each for each in found if each is not None and each != UNKNOWN})
    missing = sum(each is None or each == UNKNOWN for each in found)
    if missing:
        return CombinedLicense(UNKNOWN, None, _describe_unknown(known, missing, len(found)))
    if len(known) == 1:
        return _single(known[0])
    unranked = [each for each in known if each not in _GROUP_OF]
    if unranked:
        statement = (
            f"The members' licences differ ({_quote(known)}); the name does not show how restrictive "
            f"{_quote(unranked)} is."
        )
        return CombinedLicense(OTHER, SEVERAL, statement)
    group = max(_GROUP_OF[each] for each in known)
    strictest = [each for each in known if _GROUP_OF[each] == group]
    statement = (
        f"The members' licences differ ({_quote(known)}). The most restrictive: {_quote(strictest)} "
        f"({_WORDS[group]})."
    )
    if len(strictest) > 1:
        return CombinedLicense(OTHER, SEVERAL, statement)
    return CombinedLicense(strictest[0], None, statement)


def _single(name: str) -> CombinedLicense:
    statement = f"Every member is under {_quote([name])}."
    if name in _GROUP_OF:
        return CombinedLicense(name, None, statement)
    # The Hub takes only names that it knows, and any other beside `other`.
    slug = re.sub(r"[^a-z0-9.-]+", "-", name).strip("-.")[:60]
    return CombinedLicense(OTHER, slug or SEVERAL, statement)


def _describe_unknown(known: list[str], missing: int, count: int) -> str:
    who = "every member" if missing == count else f"{missing} of {count} members"
    rest = f" The others: {_quote(known)}." if known else ""
    return f"The licence of {who} is not known, so that of the whole is not known either.{rest}"


def _quote(names: list[str]) -> str:
    # Names come from other people's cards: nothing in them may become markup.
    return ", ".join(f"`{re.sub(r'[^A-Za-z0-9 .+_-]', '?', name)[:80]}`" for name in names)
