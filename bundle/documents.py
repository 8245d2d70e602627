"""The checks of a bundle that need none of its numbers, and so no torch."""

from __future__ import annotations

from ..schemas.errors import MeteoraError
from .agreement import check_members
from .files import check_files, check_record
from .opened import Bundle


def check_documents(bundle: Bundle) -> list[str]:
    """Check digests, record, config, tensor names and shapes, and the quoted members; return the problems.

    Raises:
        SourceUnreadable: the manifest is missing or cannot be read.
    """
    _ = bundle.manifest_sha256
    try:
        manifest = bundle.manifest
    except MeteoraError as error:
        return [str(error)]
    problems = check_files(bundle.folder, manifest) + check_record(bundle)
    try:
        _ = bundle.dtype
    except MeteoraError as error:
        problems.append(str(error))
    return problems or check_members(bundle)
