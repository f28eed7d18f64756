"""All routes of the local Hub in one FastAPI app, which every hub of a process shares."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from local_hub import (
    commits,
    discussions,
    files,
    jobs,
    lfs,
    listing,
    manage,
    pages,
    reads,
    yaml_check,
)
from local_hub.answers import RefusalError, error_answer

ALL_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")


async def _refused(_: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return error.answer


async def _invalid(_: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return error_answer(400, None, f"{place}: {first['msg']}")


async def _unknown(_: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_answer(error.status_code, None, error.detail)


async def _no_such_call() -> Response:
    return error_answer(404, None, "Not Found")


def _make_app() -> FastAPI:
    app = FastAPI(
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={
            RefusalError: _refused,
            RequestValidationError: _invalid,
            HTTPException: _unknown,
        },
    )
    for module in (listing, reads, commits, manage, discussions, yaml_check, lfs, files, jobs):
        app.include_router(module.router)
    app.add_api_route("/api/{rest:rest}", _no_such_call, methods=list(ALL_METHODS))
    # Pages come last: `/{namespace}/{name}` matches all remaining paths.
    app.include_router(pages.router)
    return app


app = _make_app()
