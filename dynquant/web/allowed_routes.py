"""The allow-list of Gradio's routes: those that the pages, programs and MCP use.

Gradio serves many more to any visitor: uploads and links to a page's state, which fill the disk;
files of its cache and of other sites, which make a Space a proxy; streams, recordings, component
functions. A new release may add others, so all routes that are not listed here are refused.
"""

from __future__ import annotations

import re

__all__ = ["NOT_FOUND", "NO_FILES", "holds_file", "is_allowed"]

NOT_FOUND = (
    "There is no such address here: these pages take no files and serve only the routes that they "
    "use. Programs find the endpoints at /gradio_api/info."
)
NO_FILES = "These pages take no files: give every value as a text, a number, a list, true or false."

_GRADIO = "/gradio_api/"
# The pages call `run/predict`; the sign-in button and gradio_client use the queue.
_OPEN = {
    "GET": re.compile(r"info/?|openapi\.json|queue/data|call/(?:v2/)?[^/]+/[^/]+"),
    "POST": re.compile(
        r"queue/join|(?:run|api|call)/[^/]+/?|call/v2/(?:plan|submit|status|cancel)/?"
    ),
}
_MCP = re.compile(r"mcp(?:/(?:http|sse|schema|messages)?/?)?")

_FILE = '"gradio.FileData"'
"""Marks a value, of any component, as a file that Gradio fetches."""


def is_allowed(method: str, path: str, *, mcp: bool = False) -> bool:
    """Whether `path` is served; routes that are not Gradio's always are.

    Args:
        method: In capitals.
        path: From the root of the site.
        mcp: Whether the endpoints are also offered as MCP tools.
    """
    if not path.startswith(_GRADIO):
        return True
    place = path.removeprefix(_GRADIO)
    if mcp and _MCP.fullmatch(place):
        return True
    return method in _OPEN and _OPEN[method].fullmatch(place) is not None


def holds_file(text: str) -> bool:
    """Whether a call holds a value that would make Gradio fetch a file.

    Args:
        text: The call as JSON, without escaped letters.
    """
    return _FILE in text
