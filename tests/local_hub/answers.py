"""Requests and answers of the local Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    """One request as it came in, and what was answered."""

    method: str
    path: str  # as sent, still percent-encoded, without the query
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    user: str | None = None
    status: int = 0
    num_bytes: int = 0

    @property
    def token(self) -> str | None:
        value = self.headers.get("authorization", "")
        return value.removeprefix("Bearer ") if value.startswith("Bearer ") else None


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None  # announced instead of len(body), for HEAD


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(
        status, json.dumps(content).encode(), {"Content-Type": "application/json"} | (headers or {})
    )


def error_answer(status: int, code: str | None, message: str, **headers: str) -> Answer:
    if code is not None:
        headers["X-Error-Code"] = code
    headers["X-Error-Message"] = message
    return json_answer({"error": message}, status, headers)


class RefusalError(Exception):
    """An answer that ends a route early."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer
