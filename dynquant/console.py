"""What the command line shows: progress bars and tables for people, one JSON object for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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

from dynquant.core.facts import ModelFacts
from dynquant.core.figures import percent, size, with_error
from dynquant.core.planning import Forecast
from dynquant.core.quality import Quality
from dynquant.pipeline import QuantizedModel
from dynquant.ports import OnStep

__all__ = [
    "ConsoleProgress",
    "escaped",
    "print_finished",
    "print_forecasts",
    "print_json",
    "print_quality",
    "quality_rows",
    "stderr",
    "stdout",
]

# Where nobody watches (a pipe, a log) tables get the width that they want.
_PIPE_WIDTH = 120

stdout = Console(soft_wrap=True, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
stderr = Console(stderr=True, soft_wrap=True)

_STEPS = {
    "align": "Measuring sensitivities",
    "measure": "Measuring costs",
    "probe": "Probing the whole model",
    "encode": "Encoding",
    "verify": "Loading in stock mlx-lm",
    "evaluate": "Evaluating",
}


class ConsoleProgress:
    """Progress on stderr; implements `ports.Progress`."""

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

            def advance(step: str) -> None:
                bars.start_task(tasks[step])
                bars.advance(tasks[step])

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


def print_quality(rows: Sequence[tuple[str, float | None, int | None, Quality]]) -> None:
    """The quality table: label, stored BPW, bytes of weights, figures."""
    figures = ("BPW", "size", "perplexity", "mean KL (nats)", "99 % KL", "top-1")
    table = Table(Column(overflow="fold"), *figures)
    for label, bpw, num_bytes, quality in rows:
        table.add_row(
            label,
            "" if bpw is None else f"{bpw:.3f}",
            "" if num_bytes is None else size(num_bytes),
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
