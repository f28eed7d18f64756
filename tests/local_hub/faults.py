"""Switches that make a request to the local Hub fail."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose `METHOD /path` matches `pattern`.

    `action`: `status` answers `status` with `headers`; `reset` drops the connection without an
    answer; `truncate` sends half of the body; `slow` waits `secs` first; `html` answers like a
    hotel's login page.
    """

    pattern: str
    action: str = "status"
    status: int = 503
    times: int = 10**9
    secs: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)

    def takes(self, method: str, path: str) -> bool:
        if self.times < 1 or re.search(self.pattern, f"{method} {path}") is None:
            return False
        self.times -= 1
        return True
