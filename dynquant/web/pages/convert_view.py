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
    "answers_of",
    "described",
    "memories",
    "queue_note",
    "summary_of",
    "whose_hub",
    "whose_macs",
]

INTRODUCTION = """
<h1>Quantize a model for your Mac</h1>
<p class="dq-lead">Choose a model from the Hugging Face Hub and how small it should get. Every layer
receives the precision that it needs, the whole comes out at exactly the size you asked for, and
runs in stock mlx-lm.</p>
"""
NOTHING_CHOSEN = markup.empty(
    "No model chosen", "What is known of it, and what your choice gives, will stand here."
)


def whose_hub(url: str) -> str:
    """A word about a Hub that is not the one that everybody knows."""
    if urlsplit(url).hostname in {"huggingface.co", "hf.co"}:
        return ""
    return (
        f'<p class="dq-hub">The Hub here is {markup.link(url.rstrip("/"), url)}: models come from '
        "there, and finished ones go there.</p>"
    )


def memories(macs: Sequence[Mac]) -> list[tuple[str, int]]:
    """What a Mac may have, in words and in GiB: those of a visitor, then all that there are."""
    names: dict[int, list[str]] = {}
    for mac in macs:
        names.setdefault(mac.memory_gib, []).append(mac.name)
    mine = [(f"{gib} GB (your {', '.join(found)})", gib) for gib, found in names.items()]
    return mine + [(f"{gib} GB", gib) for gib in MAC_MEMORY_GIB if gib not in names]


def whose_macs(macs: Sequence[Mac], *, settings_url: str) -> str:
    """Where the page knows a visitor's Macs from; how it would, if they have none."""
    if not macs:
        link = markup.link("Show your Mac on your Hugging Face profile", settings_url)
        return f"<p>{link}, and it is chosen here.</p>"
    names = [f"{markup.text(mac.name)} with {mac.memory_gib}&nbsp;GB" for mac in macs]
    if len(names) == 1:
        return f"<p>Your {names[0]}, from your Hugging Face profile.</p>"
    return f"<p>Your Macs, from your Hugging Face profile: {', '.join(names)}.</p>"


def described(found: FoundModel) -> str:
    """A model in the list that is offered."""
    parts = [found.repo_id]
    if found.num_parameters:
        parts.append(f"{count(found.num_parameters)} parameters")
    parts.append(f"{count(found.downloads)} downloads")
    return " · ".join(parts)


def summary_of(preview: ModelPreview, service: Service) -> str:
    """What is known of a model."""
    about = "about " if preview.is_rough else ""
    gated = (
        "gated: its authors let in who agrees to their terms; the quants will ask for the same"
        if preview.gated
        else "open"
    )
    rows = [
        ("Parameters", about + count(preview.inventory.num_parameters)),
        ("Family", markup.text(preview.model_type or "unknown until its terms are accepted")),
        ("License", markup.text(preview.license or "none named")),
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
    return f'<div class="dq-existing"><p>Made before, ready to download:</p><ul>{links}</ul></div>'


def answers_of(forecasts: Sequence[TargetForecast], preview: ModelPreview) -> str:
    """What each target gives."""
    return "".join(_answer(each, preview) for each in forecasts)


def _answer(one: TargetForecast, preview: ModelPreview) -> str:
    about = "about " if preview.is_rough else ""
    tiles = [
        ("Bits per weight", f"{one.target_bpw:g}", "stored, scales and biases included"),
        ("Size on disk", about + size(one.size_bytes), "never more"),
    ]
    if one.memory_bytes is None:
        tiles.append(("Memory to run", "unknown", "its config may not be read without consent"))
    else:
        needs = f"with {one.context_tokens:,} tokens of context; {one.fits}"
        tiles.append(("Memory to run", f"about {size(one.memory_bytes)}", needs))
    boxes = "".join(
        f"<div><dt>{name}</dt><dd>{markup.text(value)}<small>{markup.text(note)}</small></dd></div>"
        for name, value, note in tiles
    )
    source = (
        "measured on quants of this model"
        if one.is_measured
        else "a rule of thumb, not a measurement; small models lose more. The finished card has "
        "the figures"
    )
    return (
        f'<dl class="dq-tiles">{boxes}</dl><p class="dq-expect"><strong>Expect:</strong> '
        f"{markup.text(one.quality)} <small>({source}).</small></p>"
    )


def queue_note(queue: QueueSummary) -> str:
    """When it would be done."""
    if not queue.num_runners:
        ahead = "No runner is running now: the job will wait until one is started."
    elif queue.num_waiting + queue.num_running == 0:
        ahead = "Nothing is before it."
    else:
        ahead = f"Jobs before it: {queue.num_running} running, at most {queue.num_waiting} waiting."
    took = (
        "No job has finished here yet, so nobody knows how long one takes."
        if queue.job_secs is None
        else f"Jobs took {duration(queue.job_secs)} here lately (median, models of any size)."
    )
    return f'<p class="dq-wait">{markup.text(ahead)} {markup.text(took)}</p>'
