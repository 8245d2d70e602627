"""The signers file in docs/signing.md is one that is read."""

from __future__ import annotations

from meteora_registry.schemas.signers import SignersFile
from support.source_tree import ROOT


def test_signers_file_on_the_page_is_read() -> None:
    page = (ROOT / "docs" / "signing.md").read_text(encoding="utf-8")
    text = page.partition("<!-- signers: ")[2].partition("```toml\n")[2].partition("```")[0]
    file = SignersFile.from_toml(text.encode(), what="signing.md")
    assert [len(each) for each in (file.key, file.certificate, file.sigstore)] == [1, 1, 1]
