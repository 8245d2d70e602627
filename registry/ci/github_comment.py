"""The one comment of a pull request that a job keeps up to date, through GitHub's REST API.

The token goes to the address of the API and nowhere else, answers are bounded, and a comment is taken for the
job's own only if the job's account wrote it: others may write the mark, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx2

from ... import __version__
from ...schemas.document import load_json
from ...schemas.errors import InvalidDocument, MeteoraError
from ...schemas.github import Comment, Comments

_MAX_ANSWER_BYTES = 32 << 20
_PAGE, _MAX_PAGES = 100, 30
_TIMEOUT_SECONDS = 30.0
_REFUSED = (401, 403, 404)


class CommentFailed(MeteoraError, OSError):
    """GitHub did not take a comment for a reason other than a token that may not write."""


class Kept(StrEnum):
    """The outcome for the comment."""

    WRITTEN = "written"
    UPDATED = "updated"
    SAME = "left as it is"
    NOT_NEEDED = "not needed"
    NOT_ALLOWED = "not allowed"


@dataclass(frozen=True, slots=True)
class Thread:
    """The comments of one pull request, and the account that the job writes as."""

    api_url: str
    repository: str
    number: int
    token: str
    author: str

    def keep(self, mark: str, text: str, *, may_create: bool = True) -> Kept:
        """Write the comment with this mark, or bring it up to date; none where the token may not write.

        Args:
            mark: how the comment begins, which no reader sees.
            text: the rest of it.
            may_create: whether to write one where there is none yet.

        Raises:
            CommentFailed: GitHub cannot be reached, failed, or gave an answer that cannot be used.
        """
        body = f"{mark}\n{text}"
        try:
            with self._client() as client:
                return self._keep(client, mark, body, may_create=may_create)
        except _NotAllowed:
            return Kept.NOT_ALLOWED
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise CommentFailed(f"GitHub did not answer: {type(error).__name__}") from error
        except InvalidDocument as error:
            raise CommentFailed(f"GitHub's answer cannot be used: {error.message}") from error

    def _keep(self, client: httpx2.Client, mark: str, body: str, *, may_create: bool) -> Kept:
        place = f"/repos/{self.repository}/issues"
        for comment in self._comments(client, f"{place}/{self.number}/comments"):
            is_ours = comment.user is not None and comment.user.login == self.author
            if is_ours and (comment.body or "").startswith(mark):
                # GitHub may give line ends back in another form.
                if (comment.body or "").replace("\r\n", "\n").rstrip() == body.rstrip():
                    return Kept.SAME
                self._ask(client, "PATCH", f"{place}/comments/{comment.id}", {"body": body})
                return Kept.UPDATED
        if not may_create:
            return Kept.NOT_NEEDED
        self._ask(client, "POST", f"{place}/{self.number}/comments", {"body": body})
        return Kept.WRITTEN

    def _comments(self, client: httpx2.Client, path: str) -> Iterator[Comment]:
        for page in range(1, _MAX_PAGES + 1):
            data = self._ask(client, "GET", f"{path}?per_page={_PAGE}&page={page}")
            load_json(data, what="comments", max_bytes=_MAX_ANSWER_BYTES)
            found = Comments.from_checked(b'{"comments": ' + data + b"}", what="comments").comments
            yield from found
            if len(found) < _PAGE:
                return

    def _client(self) -> httpx2.Client:
        return httpx2.Client(
            base_url=self.api_url.rstrip("/"),
            headers={
                "Accept": "application/vnd.github+json",
                # What is not compressed cannot inflate.
                "Accept-Encoding": "identity",
                "Authorization": f"Bearer {self.token}",
                "User-Agent": f"meteora-registry/{__version__}",
                "X-GitHub-Api-Version": "2022-11-28",
            },
            timeout=_TIMEOUT_SECONDS,
            follow_redirects=False,
        )

    def _ask(self, client: httpx2.Client, method: str, path: str, value: Any = None) -> bytes:
        content = None if value is None else json.dumps(value).encode("ascii")
        with client.stream(method, path, content=content) as answer:
            if answer.status_code in _REFUSED:
                raise _NotAllowed
            data = bytearray()
            for chunk in answer.iter_raw():
                data += chunk
                if len(data) > _MAX_ANSWER_BYTES:
                    raise CommentFailed(f"GitHub's answer has more than {_MAX_ANSWER_BYTES} bytes")
            if not answer.is_success:
                raise CommentFailed(f"GitHub answered with status {answer.status_code}")
        return bytes(data)


class _NotAllowed(Exception):
    """The token may not do this, or not see that it could."""
