"""Parts of all pages: the head with the navigation, and options of handlers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import gradio as gr
from gradio.components.navbar import Navbar
from gradio.utils import get_icon_path

from dynquant.web import markup

__all__ = ["LOOK_NOW", "PAGES", "QUIET", "head", "html", "live"]

PAGES = (
    ("", "Convert"),
    ("board", "Board"),
    ("gallery", "Gallery"),
    ("watcher", "Watcher"),
    ("help", "Help"),
)
"""Path → name, in the order of the navigation."""

LOOK_NOW = "() => window.dispatchEvent(new Event('dq-look'))"
"""Makes the live part look at once."""

QUIET: Final[Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
"""Options of every handler: private, since Gradio would otherwise add it to the API; without
the queue, so that an event is one request and does not wait for others."""


# Embedded: given a path, Gradio would serve it from its route for files, which is refused, and
# reveal the server's folder.
_ICON: Final[Any] = {
    "path": "huggingface-logo.svg",
    "url": markup.data_url(Path(get_icon_path("huggingface-logo.svg")).read_text(encoding="utf-8")),
}

_SCRIPT = Path(__file__).parents[1].joinpath("live.js").read_text(encoding="utf-8")


def head(current: str, *, signs_in: bool) -> None:
    """The head of a page, whose path is `current`."""
    links = "".join(
        f'<a href="./{path}"{" aria-current=page" if path == current else ""}>{name}</a>'
        for path, name in PAGES
    )
    Navbar(visible=False)
    with gr.Row(elem_classes="dq-top", equal_height=True):
        html(
            '<div class="dq-nav"><a class="dq-brand" href="./">dynquant</a>'
            f'<nav aria-label="Pages">{links}</nav></div>'
        )
        if signs_in:
            gr.LoginButton(
                "Sign in with Hugging Face",
                logout_value="Sign out ({})",
                icon=_ICON,
                size="sm",
                variant="secondary",
                elem_classes="dq-login",
            )


def html(value: str = "", **options: Any) -> gr.HTML:
    """HTML without Gradio's styles."""
    return gr.HTML(value, apply_default_css=False, js_on_load=None, **options)


def live(path: str, before: str = "", **options: Any) -> gr.HTML:
    """HTML that is updated from `path` every three seconds; see `web.live`.

    Args:
        path: One of the routes of `web.live`.
        before: HTML above it; the fields of a form in it are part of each look.
        options: Of the component.
    """
    place = f'<div data-live="{path}" aria-live="polite">{markup.loading("Looking…")}</div>'
    return gr.HTML(before + place, apply_default_css=False, js_on_load=_SCRIPT, **options)
