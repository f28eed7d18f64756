"""What the command line shows: progress bars and tables for people, one JSON object for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape as escaped
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dynquant.core.facts import ModelFacts
from dynquant.core.figures import percent, size, with_error
from dynquant.core.planning import Forecast
from dynquant.core.quality import Quality
from dynquant.ports import OnStep

__all__ = [
    "ConsoleProgress",
    "escaped",
    "print_forecasts",
    "print_json",
    "print_quality",
    "quality_rows",
    "stderr",
    "stdout",
]

stdout = Console(soft_wrap=True)
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
    def track(self, step: str) -> Iterator[OnStep]:
        """One line per step, with the parts that are done and the time."""
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            TextColumn("{task.completed:.0f} done"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=stderr) as progress:
            tasks = {step: progress.add_task(_STEPS[step], total=None)}

            def advance(name: str) -> None:
                if name not in tasks:
                    tasks[name] = progress.add_task(_STEPS[name], total=None)
                progress.advance(tasks[name])

            yield advance
            for task in tasks.values():
                progress.update(task, total=progress.tasks[task].completed)


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
    table = Table("", "BPW", "size", "perplexity", "mean KL (nats)", "99 % KL", "top-1")
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
