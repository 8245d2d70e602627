"""The content store: every file once, under the SHA-256 digest of its bytes, never changed.

A blob is at ``sha256/ab/cdef...`` below the store's root. ``Store`` keeps it in a folder of this
machine, ``RemoteStore`` at a URL that a team shares, with a folder in front that holds what was read.
A caller publishes blobs first and records them in the catalog second, inside ``Intake.published``; a
crash in between leaves a blob that nothing refers to, and never a record without its bytes.

Nothing here knows the meaning of the bytes, or opens a catalog: ``References`` is its view of one.
"""

from .blob import Blob
from .bucket import Remote
from .intake import Intake
from .local import Leftover, References, Store
from .marks import Referenced
from .remote import RemoteStore

__all__ = [
    "Blob",
    "Intake",
    "Leftover",
    "Referenced",
    "References",
    "Remote",
    "RemoteStore",
    "Store",
]
