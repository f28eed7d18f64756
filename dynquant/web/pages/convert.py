"""The page where a model is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from dynquant.errors import DynquantError, RequestError
from dynquant.hub.search import FoundModel
from dynquant.quant.formats import AFFINE_BITS, AFFINE_GROUP_SIZES, FLOAT_FORMATS
from dynquant.texts.defaults import CALIBRATIONS
from dynquant.web import markup
from dynquant.web.pages.choice import (
    AS_IT_IS,
    BY_BPW,
    BY_MEMORY,
    MAX_BPW,
    Choice,
    OtherFields,
    targets_of,
)
from dynquant.web.pages.convert_view import (
    INTRODUCTION,
    NOTHING_CHOSEN,
    answers_of,
    described,
    memories,
    queue_note,
    summary_of,
    whose_hub,
    whose_macs,
)
from dynquant.web.pages.frame import QUIET, head, html
from dynquant.web.service import DEFAULT_CONTEXT_TOKENS, Order, Service

__all__ = ["add_convert_page"]

_SMALLEST_BPW = 2.0
_DEFAULT_BPW = 4.5
_DEFAULT_MEMORY_GIB = 16
_CONTEXTS = (4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
_BITS = [*map(str, AFFINE_BITS), AS_IT_IS]
_GROUP_SIZES = [*map(str, AFFINE_GROUP_SIZES)]
_FLOATS = [fmt.name for fmt in FLOAT_FORMATS]
_HARDWARE_SETTINGS = "settings/hardware"
_UNLESS_CHOSEN = "(known, memory, isChosen) => (known && !isChosen ? known : memory)"
_GO_TO_JOB = "(id) => { if (id) window.location.assign('job?job=' + encodeURIComponent(id)); }"


def add_convert_page(blocks: gr.Blocks, service: Service) -> None:
    """Add the page to the first route of `blocks`, which are open."""
    settings = service.settings
    page = _ConvertPage(service)
    head("", signs_in=settings.signs_in)
    with gr.Column(elem_classes="dq-page dq-convert"):
        html(INTRODUCTION + whose_hub(service.search.page_url("")))
        model = gr.Dropdown(
            choices=[],
            value=None,
            label="Model",
            info="Type a name, or paste a link from huggingface.co.",
            allow_custom_value=True,
            elem_id="dq-model",
        )
        with gr.Row(elem_classes="dq-targets"):
            way = gr.Radio([BY_BPW, BY_MEMORY], value=BY_BPW, label="How small")
            bpw = gr.Slider(
                _SMALLEST_BPW,
                MAX_BPW,
                value=_DEFAULT_BPW,
                step=0.1,
                label="Bits per weight",
                elem_id="dq-bpw",
                buttons=[],
            )
            memory = gr.Dropdown(
                memories(()),
                value=_DEFAULT_MEMORY_GIB,
                label="Memory of my Mac",
                visible=False,
                filterable=False,
                elem_id="dq-memory",
            )
            mine = html(visible=False, elem_id="dq-mine", elem_classes="dq-maybe")
            context = gr.Dropdown(
                [(f"{tokens:,} tokens", tokens) for tokens in _CONTEXTS],
                value=DEFAULT_CONTEXT_TOKENS,
                label="Context to leave room for",
                filterable=False,
            )
        with gr.Column(elem_classes="dq-known"):
            summary = html(NOTHING_CHOSEN)
            answers = html(elem_id="dq-answers", elem_classes="dq-maybe")
        with gr.Accordion("Advanced", open=False, elem_classes="dq-advanced"):
            several = gr.Textbox(
                "",
                label="Several sizes at once",
                info="Bits per weight with commas. They share one measurement, and take the "
                "place of the size above.",
                placeholder="3.5, 4.5, 6",
            )
            bits = gr.CheckboxGroup(
                _BITS,
                value=_BITS,
                label="Bits of a weight",
                info="What a layer may get. As it is: 16 bits, unquantized.",
            )
            groups = gr.CheckboxGroup(
                _GROUP_SIZES,
                value=_GROUP_SIZES,
                label="Group sizes",
                info="So many weights share one scale and one bias: fewer is finer, and larger.",
            )
            floats = gr.CheckboxGroup(
                _FLOATS,
                value=[],
                label="Floating-point formats",
                info="In addition; newer Macs run them faster.",
            )
            calibration = gr.Dropdown(
                list(CALIBRATIONS),
                value=next(iter(CALIBRATIONS)),
                label="Calibrate on",
                filterable=False,
            )
            destination = gr.Textbox(
                "",
                label="Publish to",
                info="Your name or an organization on the Hub; empty for the default.",
                visible=not settings.is_space,
            )
            private = gr.Checkbox(
                label="Publish as a private model", value=False, visible=not settings.is_space
            )
            notify_url = gr.Textbox(
                "",
                label="Tell this address when it is done",
                info="An address with https that takes JSON, or a webhook of Slack or Discord.",
            )
        convert = gr.Button("Convert", variant="primary", size="lg", elem_id="dq-convert")
        outcome = html(elem_classes="dq-maybe")
        job_id = gr.Textbox(visible=False)
        known_gib = gr.Number(visible=False, precision=0)
        is_chosen = gr.Checkbox(visible=False)

    choices: list[Any] = [model, way, bpw, memory, context, several, bits, groups, floats]
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
    way.change(page.turn, way, [bpw, memory, mine], **QUIET)
    if settings.signs_in:
        # What the Hub says may come late. The browser alone knows what was chosen by then.
        memory.input(None, None, is_chosen, js="() => true", api_visibility="private")
        blocks.load(page.recognize, None, [memory, mine, known_gib], **QUIET).then(
            None,
            [known_gib, memory, is_chosen],
            memory,
            js=_UNLESS_CHOSEN,
            api_visibility="private",
        )
    # One listener for all: of two, the older answer could come last and stay.
    gr.on(
        [summary.change, *(each.change for each in choices[1:])],
        page.foresee,
        choices,
        answers,
        trigger_mode="always_last",
        **QUIET,
    )
    convert.click(
        page.convert,
        [*choices, calibration, destination, private, notify_url],
        [outcome, job_id],
        trigger_mode="once",
        **{**QUIET, "show_progress": "minimal"},
    ).then(None, job_id, None, js=_GO_TO_JOB, api_visibility="private")


class _ConvertPage:
    """What happens on the page."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def suggest(self) -> Any:
        """Models that many take, for somebody who has typed nothing yet."""
        return self._offered(self._service.popular)

    def search(self, typed: gr.KeyUpData) -> Any:
        """Models whose names hold what was typed so far."""
        return self._offered(lambda: self._service.find(typed.input_value or ""))

    def _offered(self, ask: Callable[[], Sequence[FoundModel]]) -> Any:
        try:
            found = ask()
        except DynquantError:  # the summary says so when a model is chosen
            found = ()
        if not found:
            return gr.skip()
        return gr.Dropdown(choices=[(described(each), each.repo_id) for each in found])

    def waiting(self, model: str | None) -> tuple[str, str]:
        """What stands there while a model is looked up."""
        if not model:
            return NOTHING_CHOSEN, ""
        return markup.loading("Looking at the model…"), ""

    def choose(self, model: str | None) -> str:
        """What is known of a model."""
        if not model:
            return self.waiting(None)[0]
        try:
            return summary_of(self._service.look_at(model), self._service)
        except DynquantError as error:
            is_request = isinstance(error, RequestError)
            title = "This model cannot be taken" if is_request else "The Hub does not answer"
            return markup.notice(title, str(error), kind="bad")

    def turn(self, way: str) -> tuple[Any, Any, Any]:
        """Show the slider, or the memory and whose it is."""
        by_bpw = way == BY_BPW
        return (
            gr.Slider(visible=by_bpw),
            gr.Dropdown(visible=not by_bpw),
            gr.HTML(visible=not by_bpw),
        )

    def recognize(self, token: gr.OAuthToken | None) -> Any:
        """The Macs of who has signed in: as choices, in words, and the memory of the first."""
        macs = self._service.sign_in.macs(token.token if token else None)
        if macs is None:
            return gr.skip()
        words = whose_macs(macs, settings_url=self._service.search.page_url(_HARDWARE_SETTINGS))
        return gr.Dropdown(choices=memories(macs)), words, macs[0].memory_gib if macs else None

    def foresee(self, *values: Any) -> str:
        """What the choice means; nothing for a model that cannot be taken."""
        choice = Choice(*values)
        if not choice.model:
            return ""
        try:
            preview = self._service.chosen(choice.model)
        except DynquantError:  # the summary says so
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
        return answers_of(forecasts, preview) + queue_note(queue)

    def convert(self, token: gr.OAuthToken | None, *values: Any) -> tuple[str, str]:
        """Queue it; a job's id, or a sentence."""
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
