"""Discussions and pull requests, as records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Discussion:
    """A discussion, or a pull request whose branch is `refs/pr/<num>`.

    Attributes:
        status: "draft", "open", "closed" or "merged".
        base: The branch that a pull request is to be merged into.
        fork: The commit of it that the pull request started from.
        events: History of the thread, in the Hub's form.
    """

    num: int
    title: str
    author: str
    created_at: str
    status: str = "open"
    is_pull_request: bool = False
    base: str = "main"
    fork: str | None = None
    merge_commit: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def branch(self) -> str:
        return f"refs/pr/{self.num}"

    def add_event(self, type_: str, author: str, date: str, **content: Any) -> dict[str, Any]:
        event = {
            "id": f"{self.num:08x}{len(self.events):08x}",
            "type": type_,
            "createdAt": date,
            "author": {"name": author},
            "data": content,
        }
        self.events.append(event)
        return event

    def add_comment(self, text: str, author: str, date: str) -> dict[str, Any]:
        return self.add_event(
            "comment", author, date, edited=False, hidden=False, latest={"raw": text}
        )

    def set_status(self, status: str, author: str, date: str) -> dict[str, Any]:
        self.status = status
        return self.add_event("status-change", author, date, status=status)
