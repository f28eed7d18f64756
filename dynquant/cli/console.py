"""Output of the command line: progress bars and tables for people, one JSON object for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
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
from dynquant.quant.cache_bits import FULL_BITS
from dynquant.report.numbers import percent, significant, size, with_error
from dynquant.texts.markdown import DASH

if TYPE_CHECKING:  # errors are printed before these imports, or because one of them fails
    from dynquant.in_process import QuantizedModel
    from dynquant.jobs.ports import RunnerStatus
    from dynquant.model.source import ModelSource
    from dynquant.progress import OnStep
    from dynquant.publish import PublishedModel
    from dynquant.quant.quality import Quality
    from dynquant.report.facts import ModelFacts
    from dynquant.report.size_options import Bounds, SizeOption
    from dynquant.runner.doctor import Finding

__all__ = [
    "ConsoleProgress",
    "escaped",
    "print_findings",
    "print_finished",
    "print_job",
    "print_jobs",
    "print_json",
    "print_published",
    "print_quality",
    "print_recommended",
    "print_size_options",
    "print_terms_and_time",
    "quality_rows",
    "stderr",
    "stdout",
]

# Without a terminal (a pipe, a log) tables get their full width.
_PIPE_WIDTH = 120


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error for the command; rich would exit with the code of a failure."""
        raise BrokenPipeError


stdout = _Console(soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
stderr = _Console(stderr=True, soft_wrap=True)

_STEPS = {
    "download": "Downloading",
    "check": "Comparing the original",
    "align": "Measuring sensitivities",
    "measure": "Measuring costs",
    "probe": "Probing the whole model",
    "polish": "Trying swaps of formats",
    "encode": "Encoding",
    "reconstruct": "Fitting blocks",
    "distil": "Distilling",
    "verify": "Running in stock MLX",
    "evaluate": "Evaluating",
    "publish": "Publishing",
    "kernels": "Timing matrix products",
}


_TENTHS = 10


class ConsoleProgress:
    """Progress on stderr; implements `progress.Progress`."""

    @contextmanager
    def track(self, steps: Mapping[str, int]) -> Iterator[OnStep]:
        """A bar for each step, with the remaining time; lines where stderr is no terminal."""
        if not stderr.is_terminal:
            yield _lines_of(steps)
            return
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


def _lines_of(steps: Mapping[str, int]) -> OnStep:
    """A line for every tenth of a step: a Job's log shows them as they come, and no bar."""
    done, shown = dict.fromkeys(steps, 0), dict.fromkeys(steps, -1)

    def advance(step: str, amount: int = 1) -> None:
        done[step] += amount
        tenths = min(_TENTHS, _TENTHS * done[step] // max(1, steps[step]))
        if tenths > shown[step]:
            shown[step] = tenths
            stderr.print(f"{_STEPS[step]}: {100 // _TENTHS * tenths} %")

    advance(next(iter(steps)), 0)
    return advance


def print_json(content: Mapping[str, Any]) -> None:
    """The one JSON object of `--json`."""
    sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")


def print_size_options(options: Sequence[SizeOption], bounds: Bounds) -> None:
    """A table of size, memory, speed and disk for each target."""
    forecasts, machine = [each.forecast for each in options], bounds.machine
    first = forecasts[0]
    stdout.print(
        f"[bold]{first.model}[/] ({first.model_type}): {first.num_parameters:,} parameters, "
        f"{size(first.source_bytes)}; feasible from {first.min_bpw:.3f} to {first.max_bpw:.3f} BPW"
    )
    table = Table("BPW", "on disk", f"memory, {first.context_tokens:,} tokens", "Mac with")
    speed = () if machine is None else (f"tokens/s, {machine}",)
    for column in (*speed, "expected"):
        table.add_column(column)
    for option, each in zip(options, forecasts, strict=True):
        table.add_row(
            f"{each.target_bpw:g}",
            size(each.size_bytes),
            size(each.memory_bytes),
            DASH if option.mac_gib is None else f"{option.mac_gib} GB",
            *(_rates(option) for _ in speed),
            option.quality.partition(",")[0],
        )
    stdout.print(table)
    if bounds.kernel_times is not None:
        stdout.print("Speed with a short context: predicted from products timed on this machine.")
    elif machine is not None:
        stdout.print("Speed, empty context to full: an estimate from the chip's memory bandwidth.")
    if bounds.kv_bits < FULL_BITS:
        stdout.print(
            f"Memory and speed are for a cache of {bounds.kv_bits} bits: mlx_lm.generate --kv-bits "
            f"{bounds.kv_bits} --quantized-kv-start 0"
        )
    stdout.print(
        f"Converting takes up to {size(max(each.conversion_memory_bytes for each in forecasts))} "
        f"of memory and {size(max(each.conversion_disk_bytes for each in forecasts))} of disk."
    )
    if first.tower_bytes:
        shares = ", ".join(f"{each.language_bpw:.3g} at {each.target_bpw:g}" for each in forecasts)
        stdout.print(
            f"Parts for images or sound: {first.num_tower_parameters:,} parameters, "
            f"{size(first.tower_bytes)}. BPW of the language model alone: {shares}."
        )
    for note in first.notes:
        stdout.print(f"Note: {escaped(note)}")


def print_recommended(best: SizeOption | None, *, memory_gib: float) -> None:
    """Which of several sizes suits a machine."""
    if best is None:
        stdout.print(f"None of these runs in the {memory_gib:.0f} GB of this machine.")
        return
    bpw = f"{best.forecast.target_bpw:g}"
    stdout.print(
        f"For this machine with {memory_gib:.0f} GB: [bold]--bpw {bpw}[/], {best.quality}."
    )


def _rates(option: SizeOption) -> str:
    rates = (option.tokens_per_sec, option.full_tokens_per_sec)
    return " to ".join(significant(rate, 2) for rate in rates if rate is not None)


def print_terms_and_time(source: ModelSource, secs: float | None) -> None:
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
    figures = ["perplexity", "mean KL (nats)", "99 % KL", "top-1"]
    if with_images := any(quality.num_images for *_, quality in rows):
        figures.append("KL on images")
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
            *([_image_kl(quality)] if with_images else ()),
        )
    stdout.print(table)


def _image_kl(quality: Quality) -> str:
    return with_error(quality.image_mean_kl_nats, quality.image_mean_kl_se_nats, digits=3)


def quality_rows(facts: Sequence[ModelFacts]) -> list[tuple[str, float, int, Quality]]:
    """Rows of all sizes of a model: the original, then each target after its uniform quant."""
    rows = [(r.label, r.stored_bpw, r.num_bytes, r.quality) for r in facts[0].rows[:1]]
    for each in facts:
        uniform, ours = each.rows[1], each.rows[-1]
        rows.append((uniform.label, uniform.stored_bpw, uniform.num_bytes, uniform.quality))
        rows.append((each.name, ours.stored_bpw, ours.num_bytes, ours.quality))
    return rows


def print_finished(finished: Sequence[QuantizedModel]) -> None:
    """Figures, a text that each model generated, and the paths of the cards."""
    print_quality(quality_rows([each.facts for each in finished]))
    for each in finished:
        stdout.print(f"[bold]{each.facts.name}[/] writes: {escaped(repr(each.sample))}")
        stdout.print(f"  card: {each.folder / 'README.md'}")
    for note in dict.fromkeys(note for each in finished for note in each.facts.notes):
        stdout.print(f"Note: {escaped(note)}")


def print_published(published: Sequence[PublishedModel]) -> None:
    """The address of each model, and whether it was published before."""
    for each in published:
        was = "Published" if each.is_new else "There already"
        stdout.print(f"{was}: {each.url} (commit {each.commit_sha[:12]})")


def print_jobs(jobs: Sequence[Job], runners: Sequence[RunnerStatus]) -> None:
    """A table of jobs, and the running runners."""
    table = Table("job", Column("model", overflow="fold"), "BPW", "state", "since", "for")
    table.add_column("", overflow="fold")
    for job in jobs:
        table.add_row(
            job.id,
            escaped(job.request.model),
            ", ".join(f"{target:g}" for target in job.request.targets_bpw),
            job.state,
            _clock(job.ended_at or job.started_at or job.submitted_at),
            escaped(job.request.requester),
            escaped(_state(job)),
        )
    stdout.print(table if jobs else "There are no jobs.")
    alive = [runner.id for runner in runners if runner.is_alive]
    stdout.print(f"Runners at work: {', '.join(alive) or 'none; start one with dynquant runner'}.")


def print_job(job: Job) -> None:
    """One job with its results and attempts."""
    targets = ", ".join(f"{target:g}" for target in job.request.targets_bpw)
    stdout.print(f"[bold]{job.id}[/] {escaped(job.request.model)} at {targets} BPW")
    stdout.print(f"  {escaped(': '.join(filter(None, (job.state, _state(job)))))}")
    times = (("asked for", job.submitted_at), ("begun", job.started_at), ("ended", job.ended_at))
    stdout.print(f"  {', '.join(f'{what} {_clock(at)}' for what, at in times if at)}")
    for each in job.results:
        stdout.print(f"  {escaped(each.repo_id)} (commit {each.commit_sha[:12]})")
    for attempt in job.history:
        stdout.print(
            f"  attempt {attempt.number}: {attempt.state}. {escaped(attempt.sentence)}".rstrip()
        )


def print_findings(findings: Sequence[Finding]) -> None:
    """Print the doctor's findings: good, or an instruction."""
    for found in findings:
        mark = "[green]good[/]" if found.good else "[bold red]to do[/]"
        stdout.print(f"{mark:<9} {found.what}: {escaped(found.sentence)}")


def _state(job: Job) -> str:
    """The state or the progress of a job, in words."""
    if job.state == JobState.WAITING:
        place = f"number {job.position} in the line" if job.position else "in the line"
        return " ".join(filter(None, (f"{place}{_eta(job.eta_secs)}.", job.sentence)))
    if job.state == JobState.RUNNING and job.progress is not None:
        step, share = job.progress.step, percent(job.progress.fraction)
        return f"{step}, {share}{_eta(job.eta_secs)}. {job.progress.sentence}".strip()
    return job.sentence or (", ".join(each.repo_id for each in job.results))


def _clock(at: datetime) -> str:
    """A time of the database in the time zone of this machine."""
    return f"{at.astimezone():%Y-%m-%d %H:%M}"


def _eta(secs: float | None) -> str:
    if secs is None:
        return ""
    return f", about {max(1, round(secs / 60))} min" if secs >= 60 else f", about {secs:.0f} s"  # noqa: PLR2004
