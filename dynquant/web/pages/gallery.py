"""The Gallery page: finished models, with the quality of each size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import gradio as gr

from dynquant.errors import DynquantError
from dynquant.report.numbers import count, percent, significant, size
from dynquant.report.quality_summary import fitting_macs
from dynquant.web import markup
from dynquant.web.finished_models import FinishedModel
from dynquant.web.pages.frame import QUIET, head, html
from dynquant.web.pages.run_view import run_view
from dynquant.web.service import Service
from dynquant.web.sparkline import sparkline

__all__ = ["add_gallery_page"]

_Family = Sequence[FinishedModel]
"""Models of one original, ascending by size."""

_ORDERS: dict[str, Callable[[_Family], float]] = {
    "Newest": lambda models: (
        -max(each.created_at.timestamp() if each.created_at else 0 for each in models)
    ),
    "Most downloaded": lambda models: -sum(each.downloads for each in models),
    "Smallest": lambda models: min(each.variant.num_bytes for each in models),
    "Closest to the original": lambda models: min(each.variant.mean_kl_nats for each in models),
}


def add_gallery_page(blocks: gr.Blocks, service: Service) -> None:
    """Add the page to the route of `blocks` that is open."""
    page = _GalleryPage(service)
    head("gallery", signs_in=service.settings.signs_in)
    with gr.Column(elem_classes="dq-page"):
        html("<h1>Gallery</h1>")
        with gr.Row(elem_classes="dq-filters"):
            order = gr.Radio(list(_ORDERS), value="Newest", label="First")
            wanted = gr.Textbox(label="Model", placeholder="Part of a name", max_length=96)
        models = html(markup.loading("Reading the figures from the Hub…"), elem_id="dq-models")
    gr.on(
        [order.change, wanted.input],
        page.look,
        [order, wanted],
        models,
        trigger_mode="always_last",
        **QUIET,
    )
    blocks.load(page.look, [order, wanted], models, **QUIET)


class _GalleryPage:
    """The handlers of the page."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def look(self, order: str, wanted: str) -> str:
        """The models."""
        try:
            finished = self._service.finished_models.all()
        except DynquantError as error:
            return markup.notice("The gallery cannot be read", str(error), kind="bad")
        if not finished:
            sentence = "Published models appear here, with their figures."
            return markup.empty("No finished models yet", sentence)
        part = (wanted or "").strip().lower()
        families: dict[str, list[FinishedModel]] = defaultdict(list)
        for each in finished:
            if part in f"{each.repo_id} {each.facts.source}".lower():
                families[each.facts.source].append(each)
        if not families:
            return markup.empty("Nothing matches", "Try another part of a name.")
        rank = _ORDERS.get(order, _ORDERS["Newest"])
        in_order = sorted(
            (
                sorted(models, key=lambda each: each.variant.num_bytes)
                for models in families.values()
            ),
            key=rank,
        )
        return "".join(_family(models, self._service) for models in in_order)


def _family(models: _Family, service: Service) -> str:
    source = models[0].facts.source
    title = (
        markup.link(source, service.search.page_url(source))
        if models[0].facts.source_is_repo
        else markup.text(source)
    )
    header = ("Model", "Bits per weight", "Size", "Mean KL, nats", "Top-1", "Downloads")
    rows = [_row(each, service) for each in models]
    hub_url = service.search.page_url("")
    runs = "".join(
        f"<h3>{markup.text(each.repo_id)}</h3>{run_view(each.facts, each.repo_id, hub_url=hub_url)}"
        for each in models
    )
    plot = sparkline([each.variant for each in models])
    caption = "<figcaption>Mean KL against bits per weight</figcaption>" if plot else ""
    table = markup.table(header, rows, align="lrrrrr", name=f"Sizes of {source}")
    return (
        f'<section class="dq-card dq-family"><div class="dq-family-head"><h2>{title}</h2>'
        f"<figure>{plot}{caption}</figure></div>{table}"
        f"<details><summary>How to run them</summary>{runs}</details></section>"
    )


def _row(model: FinishedModel, service: Service) -> tuple[str, ...]:
    variant, facts = model.variant, model.facts
    fits = fitting_macs(facts.memory_bytes)
    name = markup.link(model.repo_id, service.search.page_url(model.repo_id))
    return (
        f"{name}<small>{markup.text(fits)}</small>",
        f"{variant.stored_bpw:.2f}",
        markup.text(size(variant.num_bytes)),
        markup.text(significant(variant.mean_kl_nats, 2)),
        markup.text(percent(variant.top1_agreement, decimals=1)),
        count(model.downloads),
    )
