"""The fields of the Convert page."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from dynquant.quant.formats import AFFINE_BITS, AFFINE_GROUP_SIZES, FLOAT_FORMATS
from dynquant.texts.defaults import CALIBRATIONS
from dynquant.web.pages.choice import AS_IT_IS, BY_BPW, BY_MEMORY, MAX_BPW
from dynquant.web.pages.convert_view import memory_choices
from dynquant.web.pages.frame import html
from dynquant.web.service import DEFAULT_CONTEXT_TOKENS

__all__ = [
    "TargetFields",
    "add_format_fields",
    "add_model_field",
    "add_other_fields",
    "add_several_field",
    "add_target_fields",
]

_SMALLEST_BPW = 2.0
_DEFAULT_BPW = 4.5
_DEFAULT_MEMORY_GIB = 16
_CONTEXTS = (4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
_BITS = [*map(str, AFFINE_BITS), AS_IT_IS]
_GROUP_SIZES = [*map(str, AFFINE_GROUP_SIZES)]
_FLOATS = [fmt.name for fmt in FLOAT_FORMATS]


class TargetFields(NamedTuple):
    """The fields of one target."""

    way: gr.Radio
    bpw: gr.Slider
    memory: gr.Dropdown
    mac_note: gr.HTML
    context: gr.Dropdown


def add_model_field() -> gr.Dropdown:
    """Add the field of the model."""
    return gr.Dropdown(
        choices=[],
        value=None,
        label="Model",
        info="Type a name, or paste a link from huggingface.co.",
        allow_custom_value=True,
        elem_id="dq-model",
    )


def add_target_fields() -> TargetFields:
    """Add the fields of one target."""
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
            memory_choices(()),
            value=_DEFAULT_MEMORY_GIB,
            label="Memory of my Mac",
            visible=False,
            filterable=False,
            elem_id="dq-memory",
        )
        mac_note = html(visible=False, elem_id="dq-mine", elem_classes="dq-maybe")
        context = gr.Dropdown(
            [(f"{tokens:,} tokens", tokens) for tokens in _CONTEXTS],
            value=DEFAULT_CONTEXT_TOKENS,
            label="Context to leave room for",
            filterable=False,
        )
    return TargetFields(way, bpw, memory, mac_note, context)


def add_several_field() -> gr.Textbox:
    """Add the field of several targets."""
    return gr.Textbox(
        "",
        label="Several sizes at once",
        info="Bits per weight with commas, instead of the size above. They share one measurement.",
        placeholder="3.5, 4.5, 6",
    )


def add_format_fields() -> tuple[gr.CheckboxGroup, gr.CheckboxGroup, gr.CheckboxGroup]:
    """Add the fields of formats: bits, group sizes, floating-point formats."""
    bits = gr.CheckboxGroup(
        _BITS,
        value=_BITS,
        label="Bits of a weight",
        info="Formats that a layer may get. As it is: 16 bits, unquantized.",
    )
    groups = gr.CheckboxGroup(
        _GROUP_SIZES,
        value=_GROUP_SIZES,
        label="Group sizes",
        info="Weights per scale and bias: smaller groups are finer, and take more space.",
    )
    floats = gr.CheckboxGroup(
        _FLOATS,
        value=[],
        label="Floating-point formats",
        info="Added to the choice; newer Macs run them faster.",
    )
    return bits, groups, floats


def add_other_fields(*, is_space: bool) -> list[Any]:
    """Add the fields that the forecast does not depend on, in the order of `OtherFields`."""
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
        visible=not is_space,
    )
    private = gr.Checkbox(label="Publish as a private model", value=False, visible=not is_space)
    notify_url = gr.Textbox(
        "",
        label="Notify this address when it is done",
        info="An address with https that takes JSON, or a webhook of Slack or Discord.",
    )
    return [calibration, destination, private, notify_url]
