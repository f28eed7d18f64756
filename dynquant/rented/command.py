"""The command of a Job: install one pinned dynquant with its locked packages, then convert."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

from dynquant.errors import InvalidOptionError

__all__ = ["IMAGE", "LABEL", "job_command", "labels_of", "pinned_requirement"]

IMAGE = "ghcr.io/astral-sh/uv:python3.12-bookworm"
"""Python and uv; the driver comes from the Hub's machine, CUDA from the lock."""

LABEL = "dynquant-request"
"""Label of a Job whose value says what it was asked for, so that nothing is started twice."""

# "$0" is the requirement, "$@" the words behind `dynquant`: neither is read by the shell. The lock
# lies in dynquant's own package, so the packages are those that this dynquant was tested with.
_SCRIPT = """\
set -eu
export VIRTUAL_ENV="$(mktemp -d)/dynquant"
uv venv --quiet "$VIRTUAL_ENV"
uv pip install --quiet --no-deps "$0"
uv pip install --quiet --no-deps --only-binary :all: --require-hashes \
    --requirement "$VIRTUAL_ENV/share/dynquant/cuda.lock"
export DYNQUANT_RUNNER_ID="job-$JOB_ID"
exec "$VIRTUAL_ENV/bin/dynquant" "$@"
"""

_RELEASE = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?")
_COMMIT = re.compile(r"git\+https://[^\s@]+@[0-9a-f]{40}")


def job_command(requirement: str, words: Sequence[str]) -> list[str]:
    """The command that runs `dynquant WORDS` in a Job."""
    return ["sh", "-c", _SCRIPT, requirement, *words]


def pinned_requirement(version: str, *, installed_from: str | None, chosen: str | None) -> str:
    """The dynquant that a Job installs: the one that runs here, or what the settings name.

    Args:
        version: Of the dynquant that runs here.
        installed_from: Its `direct_url.json` (PEP 610): where it was installed from; None for a
            package index.
        chosen: A release, such as `0.2.0`, or a commit, as `git+https://…@<40 digits>`.

    Raises:
        InvalidOptionError: It is no release and no commit, so that a Job could run other code.
    """
    if chosen is not None:
        if _COMMIT.fullmatch(chosen):
            return f"dynquant @ {chosen}"
        if _RELEASE.fullmatch(chosen):
            return f"dynquant=={chosen}"
        raise InvalidOptionError(
            "DYNQUANT_HUB_JOBS_SOURCE must be a release, such as '0.2.0', or a commit, as "
            "'git+https://HOST/PATH@' and its 40 hexadecimal digits."
        )
    if installed_from is None:
        return f"dynquant=={version}"
    origin = json.loads(installed_from)
    commit = f"git+{origin['url']}@{origin.get('vcs_info', {}).get('commit_id', '')}"
    if _COMMIT.fullmatch(commit):
        return f"dynquant @ {commit}"
    raise InvalidOptionError(
        "This dynquant was installed from a folder or a file, which a Job of the Hub cannot "
        "fetch. Set DYNQUANT_HUB_JOBS_SOURCE to a commit of it, as "
        "'git+https://HOST/PATH@COMMIT', or to a release."
    )


def labels_of(requirement: str, words: Sequence[str]) -> dict[str, str]:
    """The labels of a Job, which say that it is ours and, as a hash, what it was asked for."""
    asked = hashlib.sha256("\0".join((requirement, *words)).encode()).hexdigest()
    return {LABEL: asked[:32]}
