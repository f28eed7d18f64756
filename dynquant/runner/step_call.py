"""A step of a job that a runner is to do now: its inputs, and how it reports progress."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dynquant.convert import Step
from dynquant.jobs.job import StepProgress
from dynquant.jobs.request import JobRequest
from dynquant.model.naming import quantized_name
from dynquant.progress import OnStep
from dynquant.quant.recipe import Recipe
from dynquant.runner.answers import Asked
from dynquant.runner.child_process import ChildCancelledError
from dynquant.runner.job_folder import JobFolder

__all__ = ["StepCall"]


@dataclass(frozen=True, kw_only=True)
class StepCall:
    """One step of one job; the other fields are those of `jobs.ports.StepRunner.run`.

    Attributes:
        folder: The job's folder.
    """

    job_id: str
    step: Step
    request: JobRequest
    results: Mapping[str, str]
    folder: JobFolder
    report: Callable[[StepProgress], None]
    is_cancelled: Callable[[], bool]

    @property
    def recipe(self) -> Recipe:
        """How to quantize."""
        return self.request.recipe

    @property
    def private(self) -> bool | None:
        """Whether the new repos are private; None: as private as the source."""
        return self.request.private or (False if self.request.public else None)

    @property
    def resolved(self) -> dict[str, Any]:
        """The result of the step `resolve`."""
        found: dict[str, Any] = json.loads(self.results[Step.RESOLVE])
        return found

    @property
    def asked(self) -> Asked:
        """The facts that the child's answers are compared with."""
        return self.asked_of(self.resolved["source"], self.resolved["texts"])

    def asked_of(self, source: Mapping[str, Any], texts: Mapping[str, str]) -> Asked:
        """As `asked`, while the step `resolve` runs."""
        recipe = self.recipe
        targets = {quantized_name(source["name"], bpw): bpw for bpw in recipe.targets_bpw}
        return Asked(source=source, recipe=recipe, texts=texts, targets=targets)

    def require_not_cancelled(self) -> None:
        """End the step if its job was cancelled.

        Raises:
            ChildCancelledError: It was.
        """
        if self.is_cancelled():
            raise ChildCancelledError

    def report_child(self, said: Mapping[str, Any]) -> None:
        """Report progress that the child wrote."""
        self.report(
            StepProgress(
                step=self.step,
                fraction=said["fraction"],
                eta_secs=said["eta_secs"],
                layer=said["part"],
            )
        )

    @contextmanager
    def track(self, steps: Mapping[str, int]) -> Iterator[OnStep]:
        """Report progress in bytes, as a `progress.Progress`; ends if the job is cancelled."""
        total = max(sum(steps.values()), 1)
        done = 0

        def on_step(_step: str, amount: int = 1, /) -> None:
            nonlocal done
            self.require_not_cancelled()
            done += amount
            self.report(
                StepProgress(step=self.step, fraction=min(done / total, 1.0), num_bytes=done)
            )

        yield on_step
