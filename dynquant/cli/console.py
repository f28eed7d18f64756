"""Output of the command line: progress bars and tables for people, one JSON object for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape as escaped
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from dynquant.jobs.job import Job, JobState
from dynquant.report.numbers import percent, size, with_error

if TYPE_CHECKING:  # an error is told before any of it is imported, or because it cannot be
    from dynquant.in_process import QuantizedModel
    from dynquant.jobs.ports import RunnerStatus
    from dynquant.model.source import ModelSource
    from dynquant.progress import OnStep
    from dynquant.publish import PublishedModel
    from dynquant.quant.quality import Quality
    from dynquant.report.facts import ModelFacts
    from dynquant.report.forecast import Forecast
    from dynquant.runner.doctor import Finding

__all__ = [
    "ConsoleProgress",
    "escaped",
    "print_findings",
    "print_finished",
    "print_forecasts",
    "print_job",
    "print_jobs",
    "print_json",
    "print_outlook",
    "print_published",
    "print_quality",
    "quality_rows",
    "stderr",
    "stdout",
]

# Without a terminal (a pipe, a log) tables get their full width.
_PIPE_WIDTH = 120


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the command end by it; rich would end the program with the code of a failure."""
        raise BrokenPipeError


stdout = _Console(soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
stderr = _Console(stderr=True, soft_wrap=True)

_STEPS = {
    "download": "Downloading",
    "check": "Comparing with stock mlx-lm",
    "align": "Measuring sensitivities",
    "measure": "Measuring costs",
    "probe": "Probing the whole model",
    "polish": "Trying swaps of formats",
    "encode": "Encoding",
    "refine": "Refining scales and biases",
    "verify": "Loading in stock mlx-lm",
    "evaluate": "Evaluating",
    "publish": "Publishing",
}


class ConsoleProgress:
    """Progress on stderr; implements `progress.Progress`."""

    @contextmanager
    def track(self, steps: Mapping[str, int]) -> Iterator[OnStep]:
        """A bar per step, with the time that is left."""
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=stderr) as bars:
            tasks = {
                step: bars.add_task(_STEPS[step], total=total, start=False)
                for step, total in steps.items()
            }

            def advance(step: str, amount: int = 1) -> None:
                bars.start_task(tasks[step])
                bars.advance(tasks[step], amount)

            bars.start_task(next(iter(tasks.values())))
            yield advance
            for task in tasks.values():
                bars.update(task, completed=bars.tasks[task].total)


def print_json(content: Mapping[str, Any]) -> None:
    """The one JSON object of `--json`."""
    sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")


def print_forecasts(forecasts: Sequence[Forecast]) -> None:
    """A table of what each target gives and takes."""
    first = forecasts[0]
    stdout.print(
        f"[bold]{first.model}[/] ({first.model_type}): {first.num_parameters:,} parameters, "
        f"{size(first.source_bytes)}; feasible from {first.min_bpw:.3f} to {first.max_bpw:.3f} BPW"
    )
    table = Table("BPW", "on disk", f"memory to run ({first.context_tokens:,} tokens)")
    table.add_column("memory to convert")
    table.add_column("disk to convert")
    for each in forecasts:
        table.add_row(
            f"{each.target_bpw:g}",
            size(each.size_bytes),
            size(each.memory_bytes),
            size(each.conversion_memory_bytes),
            size(each.conversion_disk_bytes),
        )
    stdout.print(table)
    for note in first.notes:
        stdout.print(f"Note: {escaped(note)}")


def print_outlook(source: ModelSource, secs: float | None) -> None:
    """Print license, gating and the expected time of a conversion."""
    known = source.license_fields.get("license", "none named" if source.is_repo else "")
    gated = f", gated ({source.gated})" if source.gated else ""
    if known:
        stdout.print(f"License: {escaped(known)}{gated}.")
    time = "not known before the first conversion on this machine"
    if secs is not None:
        time = _eta(secs).removeprefix(", ")
    stdout.print(f"Time to convert: {time}.")


def print_quality(rows: Sequence[tuple[str, float | None, int | None, Quality]]) -> None:
    """The quality table: label, stored BPW and bytes of weights where known, figures."""
    sizes = ("BPW", "size") if any(bpw is not None for _, bpw, _, _ in rows) else ()
    figures = ("perplexity", "mean KL (nats)", "99 % KL", "top-1")
    table = Table(Column(overflow="fold"), *sizes, *figures)
    for label, bpw, num_bytes, quality in rows:
        known = ("" if bpw is None else f"{bpw:.3f}", "" if num_bytes is None else size(num_bytes))
        table.add_row(
            label,
            *(known if sizes else ()),
            with_error(quality.perplexity, quality.perplexity_se, digits=4),
            with_error(quality.mean_kl_nats, quality.mean_kl_se_nats, digits=3),
            f"{quality.p99_kl_nats:.3g}",
            percent(quality.top1_agreement, decimals=1),
        )
    stdout.print(table)


def quality_rows(facts: Sequence[ModelFacts]) -> list[tuple[str, float, int, Quality]]:
    """Rows of one ladder: the original once, then each target behind its uniform quant."""
    rows = [(r.label, r.stored_bpw, r.num_bytes, r.quality) for r in facts[0].rows[:1]]
    for each in facts:
        uniform, ours = each.rows[1], each.rows[-1]
        rows.append((uniform.label, uniform.stored_bpw, uniform.num_bytes, uniform.quality))
        rows.append((each.name, ours.stored_bpw, ours.num_bytes, ours.quality))
    return rows


def print_finished(finished: Sequence[QuantizedModel]) -> None:
    """Figures, what each model wrote when it was tried, and where the cards are."""
    print_quality(quality_rows([each.facts for each in finished]))
    for each in finished:
        stdout.print(f"[bold]{each.facts.name}[/] writes: {escaped(repr(each.sample))}")
        stdout.print(f"  card: {each.folder / 'README.md'}")
    for note in dict.fromkeys(note for each in finished for note in each.facts.notes):
        stdout.print(f"Note: {escaped(note)}")


def print_published(published: Sequence[PublishedModel]) -> None:
    """Where each model is, and whether it was there before."""
    for each in published:
        was = "Published" if each.is_new else "There already"
        stdout.print(f"{was}: {each.url} (commit {each.commit_sha[:12]})")


def print_jobs(jobs: Sequence[Job], runners: Sequence[RunnerStatus]) -> None:
    """A table of jobs, and who works on them."""
    table = Table("job", Column("model", overflow="fold"), "BPW", "state", "for")
    table.add_column("", overflow="fold")
    for job in jobs:
        table.add_row(
            job.id,
            escaped(job.request.model),
            ", ".join(f"{target:g}" for target in job.request.targets_bpw),
            job.state,
            escaped(job.request.requester),
            escaped(_state(job)),
        )
    stdout.print(table if jobs else "There are no jobs.")
    alive = [runner.id for runner in runners if runner.is_alive]
    stdout.print(f"Runners at work: {', '.join(alive) or 'none; start one with dynquant runner'}.")


def print_job(job: Job) -> None:
    """Everything that a person wants to know of one job."""
    targets = ", ".join(f"{target:g}" for target in job.request.targets_bpw)
    stdout.print(f"[bold]{job.id}[/] {escaped(job.request.model)} at {targets} BPW")
    stdout.print(f"  {escaped(': '.join(filter(None, (job.state, _state(job)))))}")
    for each in job.results:
        stdout.print(f"  {escaped(each.repo_id)} (commit {each.commit_sha[:12]})")
    for attempt in job.history:
        stdout.print(
            f"  attempt {attempt.number}: {attempt.state}. {escaped(attempt.sentence)}".rstrip()
        )


def print_findings(findings: Sequence[Finding]) -> None:
    """Print the doctor's findings: good, or what to do."""
    for found in findings:
        mark = "[green]good[/]" if found.good else "[bold red]to do[/]"
        stdout.print(f"{mark:<9} {found.what}: {escaped(found.sentence)}")


def _state(job: Job) -> str:
    """How far it is, in words."""
    if job.state == JobState.WAITING:
        place = f"number {job.position} in the line" if job.position else "in the line"
        return " ".join(filter(None, (f"{place}{_eta(job.eta_secs)}.", job.sentence)))
    if job.state == JobState.RUNNING and job.progress is not None:
        step, share = job.progress.step, percent(job.progress.fraction)
        return f"{step}, {share}{_eta(job.eta_secs)}. {job.progress.sentence}".strip()
    return job.sentence or (", ".join(each.repo_id for each in job.results))


def _eta(secs: float | None) -> str:
    if secs is None:
        return ""
    return f", about {max(1, round(secs / 60))} min" if secs >= 60 else f", about {secs:.0f} s"  # noqa: PLR2004
