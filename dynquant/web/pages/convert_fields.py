"""The fields of the Convert page."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from dynquant.texts.defaults import CALIBRATIONS
from dynquant.web.pages.choice import (
    BITS,
    BY_BPW,
    BY_MEMORY,
    CONTEXTS,
    DEFAULT_CHOICE,
    DEFAULT_OTHERS,
    FLOATS,
    GROUP_SIZES,
    MAX_BPW,
)
from dynquant.web.pages.convert_view import memory_choices
from dynquant.web.pages.frame import html

__all__ = [
    "TargetFields",
    "add_format_fields",
    "add_model_field",
    "add_other_fields",
    "add_several_field",
    "add_target_fields",
]

_MIN_BPW = 2.3
"""The smallest format, 2 bits in groups of 128, stores 2.25."""

_IF_IN_RANGE = f"(bpw, slider) => bpw >= {_MIN_BPW} && bpw <= {MAX_BPW} ? bpw : slider"


class TargetFields(NamedTuple):
    """The fields of one target."""

    way: gr.Radio
    bpw: gr.Number
    slider: gr.Slider
    memory: gr.Dropdown
    mac_note: gr.HTML
    context: gr.Dropdown


def add_model_field() -> gr.Dropdown:
    """Add the field of the model."""
    return gr.Dropdown(
        choices=[],
        value=None,
        label="Model",
        info="Type a name, or paste the address of its page.",
        allow_custom_value=True,
        elem_id="dq-model",
    )


def add_target_fields() -> TargetFields:
    """Add the fields of one target."""
    with gr.Row(elem_classes="dq-targets"):
        way = gr.Radio([BY_BPW, BY_MEMORY], value=BY_BPW, label="How small")
        with gr.Column(elem_classes="dq-bpw"):
            bpw = gr.Number(
                DEFAULT_CHOICE.bpw,
                step=0.1,
                label="Bits per weight",
                elem_id="dq-bpw",
            )
            slider = gr.Slider(
                _MIN_BPW,
                MAX_BPW,
                value=DEFAULT_CHOICE.bpw,
                step=0.1,
                label="bits per weight",
                show_label=False,
                elem_id="dq-slider",
                buttons=[],
            )
        memory = gr.Dropdown(
            memory_choices(()),
            value=DEFAULT_CHOICE.memory_gib,
            label="Memory of my Mac",
            visible=False,
            filterable=False,
            elem_id="dq-memory",
        )
        mac_note = html(visible=False, elem_id="dq-mine", elem_classes="dq-maybe")
        context = gr.Dropdown(
            [(f"{tokens:,} tokens", tokens) for tokens in CONTEXTS],
            value=DEFAULT_CHOICE.context_tokens,
            label="Context to leave room for",
            filterable=False,
        )
    # The number may lie outside of the slider: the forecast then says what is possible.
    slider.input(None, slider, bpw, js="(bpw) => bpw", api_visibility="private")
    bpw.change(None, [bpw, slider], slider, js=_IF_IN_RANGE, api_visibility="private")
    return TargetFields(way, bpw, slider, memory, mac_note, context)


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
        list(BITS),
        value=DEFAULT_CHOICE.bits,
        label="Bits of a weight",
        info="Formats that a layer may get. As it is: 16 bits, unquantized.",
    )
    groups = gr.CheckboxGroup(
        list(GROUP_SIZES),
        value=DEFAULT_CHOICE.groups,
        label="Group sizes",
        info="Weights per scale and bias: smaller groups are finer, and take more space.",
    )
    floats = gr.CheckboxGroup(
        list(FLOATS),
        value=DEFAULT_CHOICE.floats,
        label="Floating-point formats",
        info="Added to the choice; newer Macs run them faster.",
    )
    return bits, groups, floats


def add_other_fields(*, is_space: bool) -> list[Any]:
    """Add the fields that the forecast does not depend on, in the order of `OtherFields`."""
    calibration = gr.Dropdown(
        list(CALIBRATIONS),
        value=DEFAULT_OTHERS.calibration,
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
