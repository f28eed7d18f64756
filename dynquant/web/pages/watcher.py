"""The Watcher page: its status, and its controls for operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from dynquant.errors import DynquantError
from dynquant.watch.status import WatchAct
from dynquant.web import markup
from dynquant.web.pages.frame import LOOK_NOW, QUIET, head, html, live
from dynquant.web.pages.watcher_view import no_rules_view
from dynquant.web.service import Service

__all__ = ["add_watcher_page"]


def add_watcher_page(service: Service) -> None:
    """Add the page to the route that is open."""
    page = _WatcherPage(service)
    head("watcher", signs_in=service.settings.signs_in)
    with gr.Column(elem_classes="dq-page"):
        html("<h1>Watcher</h1>")
        if service.watch is None:
            html(no_rules_view(), elem_id="dq-watcher")
            return
        with gr.Row(elem_classes="dq-actions"):
            sweep = gr.Button("Sweep now", visible=False, size="sm")
            pause = gr.Button("Pause", visible=False, size="sm")
            resume = gr.Button("Resume", visible=False, size="sm")
        said = html(elem_classes="dq-maybe")
        place = live("live/watcher", elem_id="dq-watcher")
    place.click(page.update, None, [sweep, pause, resume], **QUIET)
    for button, act, failed in (
        (sweep, WatchAct.SWEEP, "No sweep begun"),
        (pause, WatchAct.PAUSE, "Not paused"),
        (resume, WatchAct.RESUME, "Not resumed"),
    ):
        button.click(
            page.handler(act, failed=failed), None, said, trigger_mode="once", **QUIET
        ).then(None, None, None, js=LOOK_NOW, api_visibility="private")


class _WatcherPage:
    """The handlers of the page."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def update(self, token: gr.OAuthToken | None) -> list[Any]:
        """The buttons that the visitor may use; only operators see buttons."""
        try:
            status = self._service.watch_status()
            visitor = self._service.sign_in.visitor(token.token if token else None)
        except DynquantError:  # the live part shows the error
            return _buttons()
        if visitor is None or not visitor.is_operator:
            return _buttons()
        return _buttons(
            can_sweep=not (status.is_paused or status.is_sweeping or status.problem),
            can_pause=not status.is_paused,
            can_resume=status.is_paused,
        )

    def handler(self, act: WatchAct, *, failed: str) -> Callable[[gr.OAuthToken | None], str]:
        """The handler of a button: a notice on the result of a command."""

        def handle(token: gr.OAuthToken | None) -> str:
            try:
                visitor = self._service.sign_in.require(token.token if token else None)
                sentence = self._service.control_watcher(visitor, act)
            except DynquantError as error:
                page = self._service.settings.after_sign_in("/watcher")
                return markup.refusal(failed, error, page=page)
            return markup.notice("Done", sentence) if sentence else ""

        return handle


def _buttons(
    *, can_sweep: bool = False, can_pause: bool = False, can_resume: bool = False
) -> list[Any]:
    return [gr.Button(visible=each) for each in (can_sweep, can_pause, can_resume)]
