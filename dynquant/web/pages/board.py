"""The Board page."""

from __future__ import annotations

import gradio as gr

from dynquant.web import markup
from dynquant.web.pages.board_view import FILTERS
from dynquant.web.pages.frame import head, live
from dynquant.web.service import Service

__all__ = ["add_board_page"]


def add_board_page(service: Service) -> None:
    """Add the page to the route that is open."""
    head("board", signs_in=service.settings.signs_in)
    with gr.Column(elem_classes="dq-page"):
        live("live/board", before=f"<h1>Board</h1>{_form()}", elem_id="dq-board")


def _form() -> str:
    choices = "".join(
        f'<label><input type="radio" name="state" value="{markup.text(name)}"'
        f"{' checked' if number == 0 else ''}><span>{markup.text(name)}</span></label>"
        for number, name in enumerate(FILTERS)
    )
    return (
        f'<form class="dq-filter" autocomplete="off"><fieldset><legend>Show</legend>{choices}'
        '</fieldset><label class="dq-words">Model or person<input type="search" name="words" '
        'maxlength="96" placeholder="Part of a name"></label></form>'
    )
