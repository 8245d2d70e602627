"""The Hub's list of files: paths inside the repository, and nothing else."""

from __future__ import annotations

import pytest

from meteora_registry.registry.hub.listing import RemoteFile
from meteora_registry.schemas.errors import HubMismatch


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "", "."], ids=repr)
def test_a_listed_path_that_leads_out_of_the_repository_is_refused(path: str) -> None:
    with pytest.raises(HubMismatch, match="which is not a path inside a repository"):
        RemoteFile(path, 1, None, None)
