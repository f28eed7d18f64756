"""Gradio's theme in our colours, and our style sheet and script."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from dynquant.report.svg import DARK, LIGHT

__all__ = ["HEAD", "STYLE", "theme"]

STYLE = Path(__file__).with_name("style.css")
_SCRIPT = Path(__file__).with_name("every_page.js").read_text(encoding="utf-8")

HEAD = (
    '<meta name="description" content="Quantize language models for your Mac with MLX, to exactly '
    'the bits per weight you ask for.">'
    '<meta name="referrer" content="no-referrer">'
    f"<script>{_SCRIPT}</script>"
)


def theme() -> gr.themes.Base:
    """System fonts, since nothing is fetched from elsewhere, and the colours of our pictures."""
    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="gray",
        radius_size="md",
        font=["system-ui", "-apple-system", "Segoe UI", "Helvetica", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    ).set(
        body_background_fill=LIGHT.background,
        body_background_fill_dark=DARK.background,
        body_text_color=LIGHT.text,
        body_text_color_dark=DARK.text,
        body_text_color_subdued=LIGHT.muted,
        body_text_color_subdued_dark=DARK.muted,
        background_fill_primary=LIGHT.background,
        background_fill_primary_dark=DARK.background,
        background_fill_secondary=LIGHT.empty,
        background_fill_secondary_dark=DARK.empty,
        border_color_primary=LIGHT.border,
        border_color_primary_dark=DARK.border,
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        block_title_text_color=LIGHT.text,
        block_title_text_color_dark=DARK.text,
        input_background_fill=LIGHT.background,
        input_background_fill_dark=DARK.empty,
        input_border_color="#cbd2dc",
        input_border_color_dark="#3a465c",
        input_border_width="1px",
        input_border_width_dark="1px",
        button_primary_background_fill=LIGHT.accent,
        button_primary_background_fill_dark=LIGHT.accent,
        button_primary_background_fill_hover="#275a9b",
        button_primary_background_fill_hover_dark="#3a79c8",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill=LIGHT.background,
        button_secondary_background_fill_dark=DARK.empty,
        button_secondary_border_color="#cbd2dc",
        button_secondary_border_color_dark="#3a465c",
        button_border_width="1px",
        slider_color=LIGHT.accent,
        slider_color_dark=DARK.accent,
        layout_gap="20px",
        form_gap_width="0px",
    )
