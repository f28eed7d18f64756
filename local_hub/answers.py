"""Requests and answers of the local Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response


@dataclass
class Request:
    """One request as it came in, and what was answered."""

    method: str
    path: str  # as sent, still percent-encoded, without the query
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes  # empty for uploads to storage, which are never held in memory
    user: str | None = None
    status: int = 0
    num_bytes: int = 0

    @property
    def token(self) -> str | None:
        value = self.headers.get("authorization", "")
        return value.removeprefix("Bearer ") if value.startswith("Bearer ") else None


class Answer(Response):
    """Status, body, headers, in the order in which one thinks of them."""

    def __init__(
        self, status: int = 200, body: bytes | str = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(body, status, headers)


def json_answer(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    body = json.dumps(content, separators=(",", ":"))
    return Answer(status, body, {"Content-Type": "application/json"} | dict(headers or {}))


def error_answer(status: int, code: str | None, message: str, **headers: str) -> Answer:
    if code is not None:
        headers["X-Error-Code"] = code
    # A header carries Latin-1 only; the body has the message whole.
    headers["X-Error-Message"] = message.encode("latin-1", "replace").decode("latin-1")
    return json_answer({"error": message}, status, headers)


class RefusalError(Exception):
    """An answer that ends a route early."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status_code)
        self.answer = answer


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> RefusalError:
    return RefusalError(error_answer(status, code, message, **headers))
