"""The Convert page, where visitors ask for models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from dynquant.errors import DynquantError, RequestError
from dynquant.hub.search import FoundModel
from dynquant.web import markup
from dynquant.web.pages.choice import BY_BPW, Choice, OtherFields, targets_of
from dynquant.web.pages.convert_fields import (
    TargetFields,
    add_format_fields,
    add_model_field,
    add_other_fields,
    add_several_field,
    add_target_fields,
)
from dynquant.web.pages.convert_view import (
    INTRODUCTION,
    NOTHING_CHOSEN,
    forecasts_view,
    hub_note,
    macs_note,
    memory_choices,
    model_label,
    preview_view,
    queue_note,
)
from dynquant.web.pages.frame import QUIET, head, html
from dynquant.web.service import Order, Service

__all__ = ["add_convert_page"]

_HARDWARE_SETTINGS = "settings/hardware"
_UNLESS_CHOSEN = "(known, memory, isChosen) => (known && !isChosen ? known : memory)"
_GO_TO_JOB = "(id) => { if (id) window.location.assign('job?job=' + encodeURIComponent(id)); }"


def add_convert_page(blocks: gr.Blocks, service: Service) -> None:
    """Add the page to the first route of `blocks`, which are open."""
    settings = service.settings
    page = _ConvertPage(service)
    head("", signs_in=settings.signs_in)
    with gr.Column(elem_classes="dq-page dq-convert"):
        html(INTRODUCTION + hub_note(service.search.page_url("")))
        model = add_model_field()
        targets = add_target_fields()
        with gr.Column(elem_classes="dq-known"):
            summary = html(NOTHING_CHOSEN)
            answers = html(elem_id="dq-answers", elem_classes="dq-maybe")
        with gr.Accordion("Advanced", open=False, elem_classes="dq-advanced"):
            several = add_several_field()
            formats = add_format_fields()
            others = add_other_fields(is_space=settings.is_space)
        convert = gr.Button("Convert", variant="primary", size="lg", elem_id="dq-convert")
        outcome = html(elem_classes="dq-maybe")
        job_id = gr.Textbox(visible=False)
        known_gib = gr.Number(visible=False, precision=0)
        is_chosen = gr.Checkbox(visible=False)

    blocks.load(page.suggest, None, model, **QUIET)
    # `always_last` would send the first key again and again.
    model.key_up(page.search, None, model, trigger_mode="multiple", **QUIET)
    gr.on(
        [model.input, model.select],
        page.waiting,
        model,
        [summary, answers],
        trigger_mode="always_last",
        **QUIET,
    ).then(page.choose, model, summary, **QUIET)
    shown = [targets.bpw, targets.memory, targets.mac_note]
    targets.way.change(page.show_way, targets.way, shown, **QUIET)
    if settings.signs_in:
        _offer_macs(blocks, page, targets, known_gib, is_chosen)
    choices: list[Any] = [
        model, targets.way, targets.bpw, targets.memory, targets.context, several, *formats
    ]  # fmt: skip
    # One listener for all: with two, an older answer could replace a newer.
    gr.on(
        [summary.change, *(each.change for each in choices[1:])],
        page.forecast,
        choices,
        answers,
        trigger_mode="always_last",
        **QUIET,
    )
    convert.click(
        page.convert,
        [*choices, *others],
        [outcome, job_id],
        trigger_mode="once",
        **{**QUIET, "show_progress": "minimal"},
    ).then(None, job_id, None, js=_GO_TO_JOB, api_visibility="private")


def _offer_macs(
    blocks: gr.Blocks,
    page: _ConvertPage,
    targets: TargetFields,
    known_gib: gr.Number,
    is_chosen: gr.Checkbox,
) -> None:
    """Preset the memory to the visitor's Mac, unless the visitor has chosen a memory."""
    # The Hub may answer late; only the browser knows whether a memory was chosen by then.
    targets.memory.input(None, None, is_chosen, js="() => true", api_visibility="private")
    blocks.load(page.offer_macs, None, [targets.memory, targets.mac_note, known_gib], **QUIET).then(
        None,
        [known_gib, targets.memory, is_chosen],
        targets.memory,
        js=_UNLESS_CHOSEN,
        api_visibility="private",
    )


class _ConvertPage:
    """The handlers of the page."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def suggest(self) -> Any:
        """Popular models, before the visitor types."""
        return self._offered(self._service.popular)

    def search(self, typed: gr.KeyUpData) -> Any:
        """Models whose names hold the typed text."""
        return self._offered(lambda: self._service.find(typed.input_value or ""))

    def _offered(self, ask: Callable[[], Sequence[FoundModel]]) -> Any:
        try:
            found = ask()
        except DynquantError:  # the preview shows the error when a model is chosen
            found = ()
        if not found:
            return gr.skip()
        return gr.Dropdown(choices=[(model_label(each), each.repo_id) for each in found])

    def waiting(self, model: str | None) -> tuple[str, str]:
        """Placeholders while a model is looked up."""
        if not model:
            return NOTHING_CHOSEN, ""
        return markup.loading("Looking at the model…"), ""

    def choose(self, model: str | None) -> str:
        """The preview of a model."""
        if not model:
            return self.waiting(None)[0]
        try:
            return preview_view(self._service.look_at(model), self._service)
        except DynquantError as error:
            is_request = isinstance(error, RequestError)
            title = "This model cannot be converted" if is_request else "The Hub does not answer"
            return markup.notice(title, str(error), kind="bad")

    def show_way(self, way: str) -> tuple[Any, Any, Any]:
        """Show the slider, or the memory of the Mac."""
        by_bpw = way == BY_BPW
        return (
            gr.Slider(visible=by_bpw),
            gr.Dropdown(visible=not by_bpw),
            gr.HTML(visible=not by_bpw),
        )

    def offer_macs(self, token: gr.OAuthToken | None) -> Any:
        """The visitor's Macs: as choices, as a note, and the memory of the first."""
        macs = self._service.sign_in.macs(token.token if token else None)
        if macs is None:
            return gr.skip()
        note = macs_note(macs, settings_url=self._service.search.page_url(_HARDWARE_SETTINGS))
        return gr.Dropdown(choices=memory_choices(macs)), note, macs[0].memory_gib if macs else None

    def forecast(self, *values: Any) -> str:
        """The forecast of the choice; empty for a model that cannot be converted."""
        choice = Choice(*values)
        if not choice.model:
            return ""
        try:
            preview = self._service.chosen(choice.model)
        except DynquantError:  # the preview shows the error
            return ""
        try:
            forecasts = self._service.forecasts(
                preview,
                targets_of(preview, choice),
                context_tokens=choice.context_tokens,
                formats=choice.formats,
            )
            queue = self._service.board().queue
        except DynquantError as error:
            return markup.notice("That does not work", str(error), kind="bad")
        return forecasts_view(forecasts, preview) + queue_note(queue)

    def convert(self, token: gr.OAuthToken | None, *values: Any) -> tuple[str, str]:
        """Queue the order: a notice, and the id of the job if it was queued."""
        choice = Choice(*values[: len(Choice._fields)])
        others = OtherFields(*values[len(Choice._fields) :])
        try:
            visitor = self._service.sign_in.require(token.token if token else None)
            job = self._service.submit(visitor, self._order(choice, others))
        except DynquantError as error:
            return markup.notice("Not queued", str(error), kind="bad"), ""
        return markup.loading(f"Job {job.id} is queued; opening its page…"), job.id

    def _order(self, choice: Choice, others: OtherFields) -> Order:
        if not choice.model:
            raise RequestError("Choose a model first.")
        return Order(
            model=choice.model,
            targets_bpw=targets_of(self._service.chosen(choice.model), choice),
            formats=choice.formats,
            calibration=others.calibration,
            private=others.private,
            destination=others.destination,
            notify_url=others.notify_url,
        )
