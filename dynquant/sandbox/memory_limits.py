"""How much memory the control group of this process may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["memory_limits"]


def memory_limits(root: Path = Path("/")) -> Iterator[int]:
    """Memory limits in bytes of this process's control group and those around it; Linux only.

    Args:
        root: Where Linux shows its control groups.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for group in groups:
        # `0::/a/b` is version 2, `4:memory:/a/b` version 1; within a container the path may be
        # that of the host, so the top of what is mounted counts as well.
        _, controllers, name = group.split(":", maxsplit=2)
        if not controllers:
            folder, file = "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            folder, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        path = PurePosixPath(name.lstrip("/"))
        for each in (path, *path.parents):
            try:
                limit = (root / folder / each / file).read_text(encoding="ascii").strip()
            except OSError:
                continue
            if limit.isdecimal() and int(limit):
                yield int(limit)
