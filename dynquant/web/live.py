"""Routes that open pages poll every few seconds: HTML that is the same for all visitors.

An event of Gradio takes some 30 ms of a core, so 200 open pages would occupy several cores. These
routes answer from a shared cache, with an empty answer if the page is up to date.
"""

from __future__ import annotations

import hashlib
import re

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

from dynquant.errors import DynquantError, RequestError
from dynquant.web import markup
from dynquant.web.pages.board_view import board_view
from dynquant.web.pages.job_view import job_view
from dynquant.web.pages.watcher_view import watcher_view
from dynquant.web.service import Service

__all__ = ["add_live_routes"]

_JOB_ID = re.compile(r"[0-9a-f]{1,64}")
_MAX_WORDS = 96
_HEADING = "<h1>Job</h1>"
"""Of a page without the model of a job."""


def add_live_routes(app: FastAPI, service: Service) -> None:
    """Add the routes to `app`; each answers 204 if `seen` is the mark of the current HTML."""

    @app.get("/live/job")
    def look_at_job(job: str = "", seen: str = "") -> Response:
        return _answer(*_job(service, job), seen=seen)

    @app.get("/live/board")
    def look_at_board(state: str = "", words: str = "", seen: str = "") -> Response:
        return _answer(_board(service, state, words[:_MAX_WORDS]), "", seen=seen)

    @app.get("/live/watcher")
    def look_at_watcher(seen: str = "") -> Response:
        return _answer(*_watcher(service), seen=seen)


def _job(service: Service, job_id: str) -> tuple[str, str]:
    """A job as HTML, and its phase, which changes when its possible actions change."""
    if not _JOB_ID.fullmatch(job_id):
        sentence = "Its address ends in ?job= and the id of a job. The board lists all jobs."
        return _HEADING + markup.empty("No job named", sentence), ""
    try:
        job, log = service.job(job_id)
        progress, queue = service.progress(job), service.board().queue
    except RequestError as error:
        return _HEADING + markup.notice("No such job", str(error), kind="bad"), "none"
    except DynquantError as error:
        return _HEADING + markup.notice("No current status", str(error), kind="bad"), "away"
    page_url = service.search.page_url(job.request.model)
    html = job_view(
        job, log, page_url=page_url, progress=progress, has_runner=queue.num_runners > 0
    )
    return html, f"{job.state} {job.attempt}"


def _board(service: Service, state: str, words: str) -> str:
    try:
        board = service.board()
    except DynquantError as error:
        return markup.notice("No current status", str(error), kind="bad")
    return board_view(
        board,
        service.finished_models.known(),
        state=state,
        wanted=words,
        progress=service.progress,
    )


def _watcher(service: Service) -> tuple[str, str]:
    """The watcher as HTML, and its phase, which changes when its possible actions change."""
    try:
        status = service.watch_status()
        jobs = {job.id: job for job in service.board().jobs}
    except DynquantError as error:
        return markup.notice("No current status", str(error), kind="bad"), "away"
    phase = f"{status.is_paused} {status.is_sweeping} {bool(status.problem)}"
    return watcher_view(status, jobs, page_url=service.search.page_url), phase


def _answer(html: str, phase: str, *, seen: str) -> Response:
    mark = hashlib.blake2b(html.encode(), digest_size=8).hexdigest()
    if mark == seen:
        return Response(status_code=204)
    return JSONResponse({"mark": mark, "html": html, "phase": phase})
