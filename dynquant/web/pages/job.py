"""The page of one job: its progress, and its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from dynquant.errors import DynquantError
from dynquant.jobs.job import Job, JobState
from dynquant.web import markup
from dynquant.web.pages.frame import LOOK_NOW, QUIET, head, html, live
from dynquant.web.pages.result import card_of, result_of
from dynquant.web.service import Service
from dynquant.web.sign_in import Visitor

__all__ = ["add_job_page"]

_READ_ID = (
    "(...values) => [new URLSearchParams(location.search).get('job') || '', ...values.slice(1)]"
)


def add_job_page(service: Service) -> None:
    """Add the page to the route that is open."""
    page = _JobPage(service)
    head("job", signs_in=service.settings.signs_in)
    with gr.Column(elem_classes="dq-page"):
        status = live("live/job", elem_id="dq-job")
        with gr.Row(elem_classes="dq-actions"):
            cancel = gr.Button("Cancel this job", visible=False, size="sm", elem_id="dq-cancel")
            retry = gr.Button("Try again", visible=False, size="sm")
        said = html(elem_classes="dq-maybe")
        result = html(elem_classes="dq-maybe")
        with gr.Row(visible=False, elem_classes="dq-copy") as copying:
            copy = gr.Button("Copy to my account", size="sm", scale=0)
            private = gr.Checkbox(label="as a private model", value=False, scale=0, min_width=220)
        copied = html(elem_classes="dq-maybe")
        with gr.Accordion("The card", open=False, visible=False, elem_id="dq-card") as card_box:
            card = gr.Markdown("", sanitize_html=True)
    # The id is read from the address, which survives a restart of the server.
    job_id = gr.Textbox("", visible=False)

    views = [cancel, retry, result, copying, card_box, card]
    status.click(page.update, job_id, views, js=_READ_ID, **QUIET)
    for button, act in ((cancel, page.cancel), (retry, page.retry)):
        button.click(act, job_id, said, js=_READ_ID, trigger_mode="once", **QUIET).then(
            None, None, None, js=LOOK_NOW, api_visibility="private"
        )
    copy.click(
        page.copy,
        [job_id, private],
        copied,
        js=_READ_ID,
        trigger_mode="once",
        **{**QUIET, "show_progress": "minimal"},
    )


class _JobPage:
    """The handlers of the page."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def update(self, job_id: str, token: gr.OAuthToken | None) -> list[Any]:
        """The components that depend on the state of a job: buttons, result, card."""
        try:
            job, _ = self._service.job(job_id)
            visitor = self._service.sign_in.visitor(token.token if token else None)
        except DynquantError:  # the live part shows the error
            return _components()
        owns = visitor is not None and visitor.owns(job)
        if job.state is not JobState.PUBLISHED:
            return _components(can_cancel=owns and not job.is_over, can_retry=owns and job.is_over)
        result, facts = result_of(job, self._service)
        return _components(
            result=result,
            can_copy=self._service.settings.signs_in,
            card=card_of(facts[0], job, hub_url=self._service.search.page_url("")) if facts else "",
        )

    def cancel(self, job_id: str, token: gr.OAuthToken | None) -> str:
        """Cancel the visitor's own job."""
        return self._done(self._service.cancel, job_id, token, failed="Not cancelled")

    def retry(self, job_id: str, token: gr.OAuthToken | None) -> str:
        """Retry the visitor's own job."""
        return self._done(self._service.retry, job_id, token, failed="Not queued again")

    def _done(
        self,
        action: Callable[[Visitor, str], Job],
        job_id: str,
        token: gr.OAuthToken | None,
        *,
        failed: str,
    ) -> str:
        try:
            action(self._service.sign_in.require(token.token if token else None), job_id)
        except DynquantError as error:
            return markup.refusal(failed, error, page=self._back_to(job_id))
        return ""

    def _back_to(self, job_id: str) -> str:
        return self._service.settings.after_sign_in(f"/job?job={job_id}")

    def copy(
        self,
        job_id: str,
        private: bool,  # noqa: FBT001  Gradio passes values by place
        token: gr.OAuthToken | None,
    ) -> str:
        """Copy the results to the visitor's account, with the visitor's session."""
        try:
            copies = self._service.copy(token.token if token else None, job_id, private=private)
        except DynquantError as error:
            return markup.refusal("Not copied", error, page=self._back_to(job_id))
        links = ", ".join(markup.link(each, self._service.search.page_url(each)) for each in copies)
        return (
            f'<div class="dq-notice dq-good" role="status"><strong>Copied</strong><p>{links}. The '
            "Hub may need some minutes to copy the weights.</p></div>"
        )


def _components(
    *,
    can_cancel: bool = False,
    can_retry: bool = False,
    result: str = "",
    can_copy: bool = False,
    card: str = "",
) -> list[Any]:
    return [
        gr.Button(visible=can_cancel),
        gr.Button(visible=can_retry),
        result,
        gr.Row(visible=can_copy),
        gr.Accordion(visible=bool(card)),
        card,
    ]
