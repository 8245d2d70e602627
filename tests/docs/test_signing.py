"""The signers file in docs/signing.md is one that is read."""

from __future__ import annotations

from meteora_registry.schemas.signers import SignersFile
from support.pages import example_of


def test_signers_file_on_the_page_is_read() -> None:
    text = example_of("docs/signing.md", "signers")
    file = SignersFile.from_toml(text.encode(), what="signing.md")
    assert [len(each) for each in (file.key, file.certificate, file.sigstore)] == [1, 1, 1]
