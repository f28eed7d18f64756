"""Which of Gradio's routes are served: those that the pages, programs and MCP use.

Gradio serves many more to anybody: uploads and links to a page's state, which fill the disk; files
of its cache and of other sites, which make a Space a proxy; streams, recordings, component
functions. A new release may bring others, so what is not named here is closed.
"""

from __future__ import annotations

import re

__all__ = ["NOT_FOUND", "NO_FILES", "holds_file", "is_allowed"]

NOT_FOUND = (
    "There is no such address here: these pages take no files and serve only what they use. "
    "Programs find the endpoints that there are at /gradio_api/info."
)
NO_FILES = (
    "These pages take no files: give every value as a text, a number, a list or true or false."
)

_GRADIO = "/gradio_api/"
# The pages call by `run/predict`; the button to sign in, and clients, by the queue.
_OPEN = {
    "GET": re.compile(r"info/?|openapi\.json|queue/data|call/(?:v2/)?[^/]+/[^/]+"),
    "POST": re.compile(
        r"queue/join|(?:run|api|call)/[^/]+/?|call/v2/(?:plan|submit|status|cancel)/?"
    ),
}
_MCP = re.compile(r"mcp(?:/(?:http|sse|schema|messages)?/?)?")

_FILE = '"gradio.FileData"'
"""By this word in a value of a call, of whatever component, Gradio fetches the file it names."""


def is_allowed(method: str, path: str, *, mcp: bool = False) -> bool:
    """Whether something is served at `path`; what is not Gradio's own is.

    Args:
        method: In capitals.
        path: From the root of the site.
        mcp: Whether the endpoints are offered as tools, too.
    """
    if not path.startswith(_GRADIO):
        return True
    place = path.removeprefix(_GRADIO)
    if mcp and _MCP.fullmatch(place):
        return True
    return method in _OPEN and _OPEN[method].fullmatch(place) is not None


def holds_file(text: str) -> bool:
    """Whether a call holds a value that has Gradio fetch a file.

    Args:
        text: The call as JSON that has no letter escaped.
    """
    return _FILE in text
