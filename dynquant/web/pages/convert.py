"""The Convert page, where visitors ask for models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from dynquant.errors import DynquantError, RequestError
from dynquant.hub.search import FoundModel
from dynquant.web import markup
from dynquant.web.orders import Order
from dynquant.web.pages.address import form_of, query_of
from dynquant.web.pages.choice import (
    BY_BPW,
    BY_MEMORY,
    DEFAULT_CHOICE,
    DEFAULT_OTHERS,
    Choice,
    OtherFields,
    targets_of,
)
from dynquant.web.pages.convert_fields import (
    TargetFields,
    add_format_fields,
    add_model_field,
    add_other_fields,
    add_several_field,
    add_target_fields,
)
from dynquant.web.pages.convert_view import (
    forecasts_view,
    introduction,
    macs_note,
    memory_choices,
    model_label,
    nothing_chosen,
    outcome_view,
    preview_view,
    queue_note,
)
from dynquant.web.pages.frame import QUIET, head, html
from dynquant.web.service import Service

__all__ = ["add_convert_page"]

_HARDWARE_SETTINGS = "settings/hardware"
_UNLESS_CHOSEN = "(known, memory, isChosen) => (known && !isChosen ? known : memory)"
_GO_TO_JOB = "(id) => { if (id) window.location.assign('job?job=' + encodeURIComponent(id)); }"
_READ_ADDRESS = "() => [window.location.search]"
_WRITE_ADDRESS = "(query) => window.dqWriteAddress(query)"


def add_convert_page(blocks: gr.Blocks, service: Service) -> None:
    """Add the page to the first route of `blocks`, which are open."""
    settings = service.settings
    page = _ConvertPage(service)
    head("", signs_in=settings.signs_in)
    with gr.Column(elem_classes="dq-page dq-convert"):
        html(introduction(service.search.page_url("")))
        model = add_model_field()
        targets = add_target_fields()
        with gr.Column(elem_classes="dq-known"):
            summary = html(nothing_chosen(()))
            answers = html(elem_id="dq-answers", elem_classes="dq-maybe")
        with gr.Accordion("Advanced", open=False, elem_classes="dq-advanced"):
            several = add_several_field()
            formats = add_format_fields()
            others = add_other_fields(is_space=settings.is_space)
        convert = gr.Button("Convert", variant="primary", size="lg", elem_id="dq-convert")
        said = html(elem_classes="dq-maybe")
        job_id = gr.Textbox(visible=False)
        known_gib = gr.Number(visible=False, precision=0)
        is_chosen = gr.Checkbox(visible=False)
        query = gr.Textbox(visible=False)

    fields: list[Any] = [
        model, targets.way, targets.bpw, targets.memory, targets.context, several, *formats, *others
    ]  # fmt: skip
    blocks.load(page.suggest, None, model, **QUIET)
    blocks.load(page.restore, query, [is_chosen, *fields], js=_READ_ADDRESS, **QUIET).then(
        page.choose, model, summary, **QUIET
    )
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
    shown = [targets.bpw, targets.slider, targets.memory, targets.mac_note]
    targets.way.change(page.show_way, targets.way, shown, **QUIET)
    if settings.signs_in:
        _offer_macs(blocks, page, targets, known_gib, is_chosen)
    # A message about an earlier form does not hold for this one.
    by_hand = [each.input for each in (*fields, targets.slider)]
    gr.on([*by_hand, model.select], None, None, said, js="() => ''", api_visibility="private")
    # One listener for all: with two, an older answer could replace a newer.
    gr.on(
        [summary.change, *(each.change for each in fields[1:])],
        page.forecast,
        fields,
        [answers, query],
        trigger_mode="always_last",
        **QUIET,
    ).then(None, query, None, js=_WRITE_ADDRESS, api_visibility="private")
    convert.click(
        page.convert,
        fields,
        [said, job_id],
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
        return self._offered(self._popular())

    def search(self, typed: gr.KeyUpData) -> Any:
        """Models whose names hold the typed text."""
        try:
            return self._offered(self._service.find(typed.input_value or ""))
        except DynquantError:  # as above
            return gr.skip()

    def _popular(self) -> Sequence[FoundModel]:
        try:
            return self._service.popular()
        except DynquantError:  # the preview shows the error when a model is chosen
            return ()

    def _offered(self, found: Sequence[FoundModel]) -> Any:
        if not found:
            return gr.skip()
        return gr.Dropdown(choices=[(model_label(each), each.repo_id) for each in found])

    def restore(self, query: str) -> Any:
        """Whether the address of the page names a memory, and the form that it names."""
        choice, others = form_of(query)
        if (choice, others) == (DEFAULT_CHOICE, DEFAULT_OTHERS):
            return gr.skip()  # the visitor may have begun to fill in the fields
        return [choice.way == BY_MEMORY, *choice, *others]

    def waiting(self, model: str | None) -> tuple[str, str]:
        """Placeholders while a model is looked up."""
        if not model:
            return nothing_chosen(self._popular()), ""
        return markup.loading("Looking at the model…"), ""

    def choose(self, model: str | None) -> str:
        """The preview of a model."""
        if not model:
            return self.waiting(None)[0]
        try:
            preview = self._service.look_at(model)
            return preview_view(preview, page_url=self._service.search.page_url)
        except DynquantError as error:
            is_request = isinstance(error, RequestError)
            title = "This model cannot be converted" if is_request else "The Hub does not answer"
            return markup.notice(title, str(error), kind="bad")

    def show_way(self, way: str) -> tuple[Any, Any, Any, Any]:
        """Show the bits per weight, or the memory of the Mac."""
        by_bpw = way == BY_BPW
        return (
            gr.Number(visible=by_bpw),
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

    def forecast(self, token: gr.OAuthToken | None, *values: Any) -> tuple[str, str]:
        """The forecast of the choice, and the form as the query of an address."""
        choice, others = _form(values)
        return self._forecast(choice, others, token), query_of(choice, others)

    def _forecast(self, choice: Choice, others: OtherFields, token: gr.OAuthToken | None) -> str:
        """The forecast of the choice; empty for a model that cannot be converted."""
        if not choice.model:
            return ""
        try:
            preview = self._service.chosen(choice.model)
        except DynquantError:  # the preview shows the error
            return ""
        try:
            order = self._order(choice, others)
            forecasts = self._service.forecasts(
                preview,
                order.targets_bpw,
                context_tokens=choice.context_tokens,
                formats=order.formats,
            )
            visitor = self._service.sign_in.visitor(token.token if token else None)
            outcome = self._service.outcome(visitor, order, preview)
            queue = self._service.board().queue
        except DynquantError as error:
            return markup.notice("That does not work", str(error), kind="bad")
        return (
            forecasts_view(forecasts, preview) + outcome_view(outcome, preview) + queue_note(queue)
        )

    def convert(self, token: gr.OAuthToken | None, *values: Any) -> tuple[str, str]:
        """Queue the order: a notice, and the id of the job if it was queued."""
        choice, others = _form(values)
        try:
            visitor = self._service.sign_in.require(token.token if token else None)
            job = self._service.submit(visitor, self._order(choice, others))
        except DynquantError as error:
            page = self._service.settings.after_sign_in(f"/?{query_of(choice, others)}")
            return markup.refusal("Not queued", error, page=page), ""
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


def _form(values: Sequence[Any]) -> tuple[Choice, OtherFields]:
    num_choices = len(Choice._fields)
    return Choice(*values[:num_choices]), OtherFields(*values[num_choices:])
