"""The page where a model is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import gradio as gr

from dynquant.core.figures import count, size
from dynquant.core.formats import (
    AFFINE_BITS,
    AFFINE_GROUP_SIZES,
    DEFAULT_MENU,
    FLOAT_FORMATS,
    UNQUANTIZED,
)
from dynquant.core.verdict import MAC_MEMORY_GIB
from dynquant.errors import DynquantError, InvalidOptionError, RequestError
from dynquant.hub.search import FoundModel
from dynquant.web import markup
from dynquant.web.outlook import LARGEST_BPW, Line, Outlook, largest_that_fits
from dynquant.web.pages.frame import QUIET, head, html
from dynquant.web.prospects import Prospect
from dynquant.web.service import CALIBRATIONS, DEFAULT_CONTEXT_TOKENS, Order, Service
from dynquant.web.words import duration

__all__ = ["add_convert_page"]

_BY_BPW, _BY_MEMORY = "Bits per weight", "Memory of my Mac"
_SMALLEST_BPW = 2.0
_DEFAULT_BPW = 4.5
_DEFAULT_MEMORY_GIB = 16
_CONTEXTS = (4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
_AS_IT_IS = "as it is"
_BITS = [*map(str, AFFINE_BITS), _AS_IT_IS]
_GROUP_SIZES = [*map(str, AFFINE_GROUP_SIZES)]
_FLOATS = [fmt.name for fmt in FLOAT_FORMATS]
_GO_TO_JOB = "(id) => { if (id) window.location.assign('job?job=' + encodeURIComponent(id)); }"

_INTRODUCTION = """
<h1>Quantize a model for your Mac</h1>
<p class="dq-lead">Choose a model from the Hugging Face Hub and how small it should get. Every layer
receives the precision that it needs, the whole comes out at exactly the size you asked for, and
runs in stock mlx-lm.</p>
"""
_NOTHING_CHOSEN = markup.empty(
    "No model chosen", "What is known of it, and what your choice gives, will stand here."
)


def add_convert_page(blocks: gr.Blocks, service: Service) -> None:
    """Add the page to the first route of `blocks`, which are open."""
    settings = service.settings
    page = _ConvertPage(service)
    head("", signs_in=settings.signs_in)
    with gr.Column(elem_classes="dq-page dq-convert"):
        html(_INTRODUCTION + _whose_hub(service.search.page_url("")))
        model = gr.Dropdown(
            choices=[],
            value=None,
            label="Model",
            info="Type a name, or paste a link from huggingface.co.",
            allow_custom_value=True,
            elem_id="dq-model",
        )
        with gr.Row(elem_classes="dq-targets"):
            way = gr.Radio([_BY_BPW, _BY_MEMORY], value=_BY_BPW, label="How small")
            bpw = gr.Slider(
                _SMALLEST_BPW,
                LARGEST_BPW,
                value=_DEFAULT_BPW,
                step=0.1,
                label="Bits per weight",
                elem_id="dq-bpw",
                buttons=[],
            )
            memory = gr.Dropdown(
                [(f"{gib} GB", gib) for gib in MAC_MEMORY_GIB],
                value=_DEFAULT_MEMORY_GIB,
                label="Memory of my Mac",
                visible=False,
                filterable=False,
            )
            context = gr.Dropdown(
                [(f"{tokens:,} tokens", tokens) for tokens in _CONTEXTS],
                value=DEFAULT_CONTEXT_TOKENS,
                label="Context to leave room for",
                filterable=False,
            )
        with gr.Column(elem_classes="dq-known"):
            summary = html(_NOTHING_CHOSEN)
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
                info="A web address that takes JSON, or a webhook of Slack or Discord.",
            )
        convert = gr.Button("Convert", variant="primary", size="lg", elem_id="dq-convert")
        outcome = html(elem_classes="dq-maybe")
        job_id = gr.Textbox(visible=False)

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
    way.change(page.turn, way, [bpw, memory], **QUIET)
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


def _whose_hub(url: str) -> str:
    """A word about a Hub that is not the one that everybody knows."""
    if urlsplit(url).hostname in {"huggingface.co", "hf.co"}:
        return ""
    return (
        f'<p class="dq-hub">The Hub here is {markup.link(url.rstrip("/"), url)}: models come from '
        "there, and finished ones go there.</p>"
    )


class _Choice(NamedTuple):
    """The fields that answers depend on, in the order of the page."""

    model: str | None
    way: str
    bpw: float
    memory_gib: int
    context_tokens: int
    several: str
    bits: list[str]
    groups: list[str]
    floats: list[str]

    @property
    def formats(self) -> str:
        """Formats to choose from, with commas; empty for the default ones.

        Raises:
            InvalidOptionError: None is left.
        """
        names = [
            f"{bits}g{group}" for bits in self.bits for group in self.groups if bits != _AS_IT_IS
        ]
        names += [UNQUANTIZED.name] * (_AS_IT_IS in self.bits) + self.floats
        if not names:
            raise InvalidOptionError("Leave at least one choice of bits, and one group size.")
        is_default = set(names) == {fmt.name for fmt in DEFAULT_MENU}
        return "" if is_default else ",".join(names)


class _Wishes(NamedTuple):
    """The other fields, in the order of the page."""

    calibration: str
    destination: str
    private: bool
    notify_url: str


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
        return gr.Dropdown(choices=[(_described(each), each.repo_id) for each in found])

    def waiting(self, model: str | None) -> tuple[str, str]:
        """What stands there while a model is looked up."""
        if not model:
            return _NOTHING_CHOSEN, ""
        return markup.loading("Looking at the model…"), ""

    def choose(self, model: str | None) -> str:
        """What is known of a model."""
        if not model:
            return self.waiting(None)[0]
        try:
            return _summary(self._service.look_at(model), self._service)
        except DynquantError as error:
            is_request = isinstance(error, RequestError)
            title = "This model cannot be taken" if is_request else "The Hub does not answer"
            return markup.notice(title, str(error), kind="bad")

    def turn(self, way: str) -> tuple[Any, Any]:
        """Show the slider or the memory."""
        by_bpw = way == _BY_BPW
        return gr.Slider(visible=by_bpw), gr.Dropdown(visible=not by_bpw)

    def foresee(self, *values: Any) -> str:
        """What the choice means; nothing for a model that cannot be taken."""
        choice = _Choice(*values)
        if not choice.model:
            return ""
        try:
            prospect = self._service.prospects(choice.model)
        except DynquantError:  # the summary says so
            return ""
        try:
            outlooks = self._service.outlooks(
                prospect,
                _targets(prospect, choice),
                context_tokens=choice.context_tokens,
                formats=choice.formats,
            )
            line = self._service.board().line
        except DynquantError as error:
            return markup.notice("That does not work", str(error), kind="bad")
        return _answers(outlooks, prospect) + _wait(line)

    def convert(self, token: gr.OAuthToken | None, *values: Any) -> tuple[str, str]:
        """Queue it; a job's id, or a sentence."""
        choice = _Choice(*values[: len(_Choice._fields)])
        wishes = _Wishes(*values[len(_Choice._fields) :])
        try:
            visitor = self._service.reception.require(token.token if token else None)
            job = self._service.submit(visitor, self._order(choice, wishes))
        except DynquantError as error:
            return markup.notice("Not queued", str(error), kind="bad"), ""
        return markup.loading(f"Job {job.id} is queued; opening its page…"), job.id

    def _order(self, choice: _Choice, wishes: _Wishes) -> Order:
        if not choice.model:
            raise RequestError("Choose a model first.")
        return Order(
            model=choice.model,
            targets_bpw=_targets(self._service.prospects(choice.model), choice),
            formats=choice.formats,
            calibration=wishes.calibration,
            private=wishes.private,
            destination=wishes.destination,
            notify_url=wishes.notify_url,
        )


def _targets(prospect: Prospect, choice: _Choice) -> tuple[float, ...]:
    several = [part for part in choice.several.split(",") if part.strip()]
    if several:
        try:
            return tuple(dict.fromkeys(map(float, several)))
        except ValueError as error:
            raise InvalidOptionError(
                "Several sizes are numbers with commas between them, such as 3.5, 4.5, 6."
            ) from error
    if choice.way == _BY_MEMORY:
        found = largest_that_fits(
            prospect, memory_gib=choice.memory_gib, context_tokens=choice.context_tokens
        )
        return (found,)
    return (round(choice.bpw, 2),)


def _described(found: FoundModel) -> str:
    parts = [found.repo_id]
    if found.num_parameters:
        parts.append(f"{count(found.num_parameters)} parameters")
    parts.append(f"{count(found.downloads)} downloads")
    return " · ".join(parts)


def _summary(prospect: Prospect, service: Service) -> str:
    """What is known of a model."""
    about = "about " if prospect.is_rough else ""
    gated = (
        "gated: its authors let in who agrees to their terms; the quants will ask for the same"
        if prospect.gated
        else "open"
    )
    rows = [
        ("Parameters", about + count(prospect.inventory.num_parameters)),
        ("Family", markup.text(prospect.model_type or "unknown until its terms are accepted")),
        ("License", markup.text(prospect.license or "none named")),
        ("Access", gated),
        ("Downloads", count(prospect.downloads)),
    ]
    name = markup.link(prospect.repo_id, service.search.page_url(prospect.repo_id))
    return (
        f'<section class="dq-card"><h2>{name}</h2>{markup.facts(rows)}'
        f"{_existing(prospect.quants, service)}</section>"
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


def _answers(outlooks: Sequence[Outlook], prospect: Prospect) -> str:
    return "".join(_answer(each, prospect) for each in outlooks)


def _answer(one: Outlook, prospect: Prospect) -> str:
    about = "about " if prospect.is_rough else ""
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


def _wait(line: Line) -> str:
    """When it would be done."""
    if not line.num_runners:
        ahead = "No runner is running now: the job will wait until one is started."
    elif line.num_waiting + line.num_running == 0:
        ahead = "Nothing is before it."
    else:
        ahead = f"Jobs before it: {line.num_running} running, at most {line.num_waiting} waiting."
    took = (
        "No job has finished here yet, so nobody knows how long one takes."
        if line.job_secs is None
        else f"Jobs took {duration(line.job_secs)} here lately (median, models of any size)."
    )
    return f'<p class="dq-wait">{markup.text(ahead)} {markup.text(took)}</p>'
