"""The words by which text is searched: runs of letters and digits, whatever the case or the spelling.

``meta-llama/Llama-3.1-8B`` has the words ``meta``, ``llama``, ``3``, ``1`` and ``8b``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from itertools import islice

MAX_WORD_CHARACTERS = 64
# More than any honest adapter has; what a hostile one writes cannot fill the index.
MAX_WORDS = 256
_WORD = re.compile(r"[^\W_]+")


def words_of(texts: Iterable[str | None]) -> tuple[str, ...]:
    """The different words of some texts in their order: at most 256, each cut to 64 characters."""
    found = (
        word[:MAX_WORD_CHARACTERS]
        for text in texts
        if text is not None
        for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    )
    return tuple(islice(dict.fromkeys(found), MAX_WORDS))
