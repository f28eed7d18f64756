"""Runs one step in a confined child process, reads its answer, and translates its failures."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynquant.errors import (
    DynquantError,
    InvalidModelError,
    NeverPublishError,
    NotEnoughMemoryError,
    Reason,
    RequestError,
    RetryLaterError,
)
from dynquant.report.numbers import size
from dynquant.runner.answers import Answer, distrusted
from dynquant.runner.child_process import (
    ChildMemoryError,
    ChildOutputError,
    ChildSilentError,
    run_child,
)
from dynquant.runner.job_folder import JobFolder
from dynquant.runner.machine import is_memory_short
from dynquant.runner.spec import Limits
from dynquant.sandbox import clean_environment, confined

__all__ = ["Worker"]

_DATA_SHARE, _BASE_DATA_BYTES = 2, 2 << 30
"""Bound of the memory that a child reserves; the memory that it uses is watched once a second."""

_NO_MEMORY = ("memory allocation of", "cannot allocate memory")
"""In the messages of Rust and the C library before they abort."""

_KINDS = {2: RequestError, 3: RetryLaterError, 4: NeverPublishError}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Does steps in children that are confined as far as the system allows.

    Attributes:
        max_memory_bytes: Memory that a child may use.
        limits: How long it may take.
    """

    max_memory_bytes: int
    limits: Limits

    def run(
        self,
        step: str,
        folder: JobFolder,
        *,
        model: Path,
        report: Callable[[Mapping[str, Any]], None],
        is_cancelled: Callable[[], bool],
    ) -> Any:
        """Do `step` of the job in `folder`; returns the child's answer.

        Args:
            step: A `convert.Step`.
            folder: The job's folder.
            model: Folder of the original, which the child may read.
            report: Called with `part`, `fraction` and `eta_secs` now and then.
            is_cancelled: True kills the child.

        Raises:
            DynquantError: The child's own error, or the reason why it was killed.
            ChildCancelledError: `is_cancelled` was True.
        """
        if is_memory_short():
            raise RetryLaterError(
                "This machine is short of memory. Close other programs there; the job continues by "
                "itself."
            )
        answer = Answer(report)
        folder.renew_work()
        try:
            code, errors = run_child(
                confined(
                    [sys.executable, "-m", "dynquant.runner.worker", step, str(folder.path)],
                    writable=[folder.work, folder.scratch],
                    readable=[folder.path, *_places(model)],
                    max_data_bytes=_BASE_DATA_BYTES + _DATA_SHARE * self.max_memory_bytes,
                ),
                environment=clean_environment(folder.scratch, {"HF_HUB_OFFLINE": "1"}),
                folder=folder.work,
                on_line=answer.take,
                is_cancelled=is_cancelled,
                max_memory_bytes=self.max_memory_bytes,
                max_silent_secs=self.limits.silent_secs,
            )
        except ChildSilentError as error:
            raise _too_long("Converting this model made no progress for hours.") from error
        except ChildMemoryError as error:
            raise self._too_large(error.num_bytes) from error
        except ChildOutputError as error:
            raise distrusted("a line without an end") from error
        if answer.has_result and code == 0:
            return answer.result
        if (ended := self._ended(code, answer, errors)) is not None:
            raise ended
        _logger.error("Step %s ended with code %s:\n%s", step, code, errors)
        raise RuntimeError(f"step {step} ended with code {code}")

    def _ended(self, code: int, answer: Answer, errors: str) -> DynquantError | None:
        """Why a child gave no result; None if the reason is unknown."""
        if answer.reason == Reason.NOT_ENOUGH_MEMORY:
            return self._too_large(_DATA_SHARE * self.max_memory_bytes)
        if answer.reason is not None and code in _KINDS:
            return _KINDS[code](answer.sentence, reason=answer.reason)
        if code == -signal.SIGXCPU:
            return _too_long("Opening this model or reading text with it takes far too long.")
        if code == -signal.SIGKILL or any(each in errors for each in _NO_MEMORY):
            return NotEnoughMemoryError(
                "The system killed the process that converts this model, most likely because "
                "memory ran out.",
                needed_bytes=self.max_memory_bytes + 1,
            )
        return None

    def _too_large(self, num_bytes: int) -> NotEnoughMemoryError:
        return NotEnoughMemoryError(
            f"Converting this model took {size(num_bytes)} of memory, more than this "
            f"runner may use ({size(self.max_memory_bytes)}).",
            needed_bytes=num_bytes,
        )


def _places(model: Path) -> set[Path]:
    """The folders with a model's files: its own, and those of the blobs that it links to."""
    links = (path for path in model.rglob("*") if path.is_symlink())
    return {model, *(path.resolve().parent for path in links)}


def _too_long(what: str) -> InvalidModelError:
    return InvalidModelError(
        f"{what} Try the model elsewhere, for example with mlx_lm.generate, and ask its author "
        "to look at its tokenizer, chat template and config.",
        reason=Reason.TAKES_TOO_LONG,
    )
