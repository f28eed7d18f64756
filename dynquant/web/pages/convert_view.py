"""The pieces of the Convert page as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from dynquant.hub.hardware import Mac
from dynquant.hub.search import FoundModel
from dynquant.report.forecast import TargetForecast
from dynquant.report.numbers import count, size
from dynquant.report.quality_summary import MAC_MEMORY_GIB
from dynquant.web import markup
from dynquant.web.labels import duration
from dynquant.web.model_lookup import ModelPreview
from dynquant.web.queue_summary import QueueSummary
from dynquant.web.service import Service

__all__ = [
    "INTRODUCTION",
    "NOTHING_CHOSEN",
    "forecasts_view",
    "hub_note",
    "macs_note",
    "memory_choices",
    "model_label",
    "preview_view",
    "queue_note",
]

INTRODUCTION = """
<h1>Quantize a model for your Mac</h1>
<p class="dq-lead">Choose a model from the Hugging Face Hub and its new size. Every layer gets the
precision that it needs; the result has exactly the size you asked for, and runs in stock
mlx-lm.</p>
"""
NOTHING_CHOSEN = markup.empty(
    "No model chosen", "Choose a model to see its size, memory and expected quality."
)


def hub_note(url: str) -> str:
    """A note if the Hub is not huggingface.co."""
    if urlsplit(url).hostname in {"huggingface.co", "hf.co"}:
        return ""
    return (
        f'<p class="dq-hub">The Hub here is {markup.link(url.rstrip("/"), url)}: models come from '
        "there and are published there.</p>"
    )


def memory_choices(macs: Sequence[Mac]) -> list[tuple[str, int]]:
    """Choices of memory as text and GiB: the visitor's Macs, then all sizes of Macs."""
    names: dict[int, list[str]] = {}
    for mac in macs:
        names.setdefault(mac.memory_gib, []).append(mac.name)
    mine = [(f"{gib} GB (your {', '.join(found)})", gib) for gib, found in names.items()]
    return mine + [(f"{gib} GB", gib) for gib in MAC_MEMORY_GIB if gib not in names]


def macs_note(macs: Sequence[Mac], *, settings_url: str) -> str:
    """A note on the source of the visitor's Macs, or on how to show a Mac."""
    if not macs:
        link = markup.link("Show your Mac on your Hugging Face profile", settings_url)
        return f"<p>{link} to have it chosen here.</p>"
    names = [f"{markup.text(mac.name)} with {mac.memory_gib}&nbsp;GB" for mac in macs]
    if len(names) == 1:
        return f"<p>Your {names[0]}, from your Hugging Face profile.</p>"
    return f"<p>Your Macs, from your Hugging Face profile: {', '.join(names)}.</p>"


def model_label(found: FoundModel) -> str:
    """A model in the list of suggestions."""
    parts = [found.repo_id]
    if found.num_parameters:
        parts.append(f"{count(found.num_parameters)} parameters")
    parts.append(f"{count(found.downloads)} downloads")
    return " · ".join(parts)


def preview_view(preview: ModelPreview, service: Service) -> str:
    """The preview of a model."""
    about = "about " if preview.is_rough else ""
    gated = (
        "gated: users must accept its terms; the quants will require the same"
        if preview.gated
        else "open"
    )
    rows = [
        ("Parameters", about + count(preview.inventory.num_parameters)),
        ("Family", markup.text(preview.model_type or "unknown: the config is gated")),
        ("License", markup.text(preview.license or "not named")),
        ("Access", gated),
        ("Downloads", count(preview.downloads)),
    ]
    name = markup.link(preview.repo_id, service.search.page_url(preview.repo_id))
    return (
        f'<section class="dq-card"><h2>{name}</h2>{markup.facts(rows)}'
        f"{_existing(preview.quants, service)}</section>"
    )


def _existing(quants: Sequence[FoundModel], service: Service) -> str:
    if not quants:
        return ""
    links = "".join(
        f"<li>{markup.link(each.repo_id, service.search.page_url(each.repo_id))} "
        f"<small>{count(each.downloads)} downloads</small></li>"
        for each in quants
    )
    return f'<div class="dq-existing"><p>Already made, ready to download:</p><ul>{links}</ul></div>'


def forecasts_view(forecasts: Sequence[TargetForecast], preview: ModelPreview) -> str:
    """The forecast of each target."""
    return "".join(_answer(each, preview) for each in forecasts)


def _answer(target: TargetForecast, preview: ModelPreview) -> str:
    about = "about " if preview.is_rough else ""
    tiles = [
        ("Bits per weight", f"{target.target_bpw:g}", "stored, scales and biases included"),
        ("Size on disk", about + size(target.size_bytes), "never more"),
    ]
    if target.memory_bytes is None:
        tiles.append(("Memory to run", "unknown", "its config is gated"))
    else:
        needs = f"with {target.context_tokens:,} tokens of context; {target.fits}"
        tiles.append(("Memory to run", f"about {size(target.memory_bytes)}", needs))
    boxes = "".join(
        f"<div><dt>{name}</dt><dd>{markup.text(value)}<small>{markup.text(note)}</small></dd></div>"
        for name, value, note in tiles
    )
    source = (
        "measured on quants of this model"
        if target.is_measured
        else "a rule of thumb, not a measurement; small models lose more. The finished card has "
        "the figures"
    )
    return (
        f'<dl class="dq-tiles">{boxes}</dl><p class="dq-expect"><strong>Expect:</strong> '
        f"{markup.text(target.quality)} <small>({source}).</small></p>"
    )


def queue_note(queue: QueueSummary) -> str:
    """A note on when a new job would be done."""
    if not queue.num_runners:
        ahead = "No runner is running: the job will wait until a runner is started."
    elif queue.num_waiting + queue.num_running == 0:
        ahead = "The queue is empty."
    else:
        ahead = f"Jobs before it: {queue.num_running} running, at most {queue.num_waiting} waiting."
    took = (
        "No job has finished here yet, so the duration is unknown."
        if queue.job_secs is None
        else f"Recent jobs took {duration(queue.job_secs)} (median, models of any size)."
    )
    return f'<p class="dq-wait">{markup.text(ahead)} {markup.text(took)}</p>'
