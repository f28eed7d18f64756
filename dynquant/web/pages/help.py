"""The Help page: the endpoints for programs, and where the documentation is."""

from __future__ import annotations

import gradio as gr

from dynquant.web import markup
from dynquant.web.pages.frame import head, html
from dynquant.web.service import Service

__all__ = ["add_help_page"]

_ENDPOINTS = (
    ("/plan", "sizes, memory and expected quality of a model; queues nothing"),
    ("/submit", "queue a model; needs a token on a Space"),
    ("/status", "state, progress and results of a job"),
    ("/cancel", "cancel a job of your own; needs a token on a Space"),
)
_PROGRAM = """from gradio_client import Client

pages = Client("<span data-origin></span>")  # on a Space: Client("…", oauth_token="hf_…")
plan = pages.predict(model="Qwen/Qwen3-8B", bits_per_weight=[4.5], api_name="/plan")
job = pages.predict(model="Qwen/Qwen3-8B", bits_per_weight=[4.5], api_name="/submit")
print(pages.predict(job["id"], api_name="/status")["state"])"""
_DOCUMENTS = (
    ("README.md", "install and use"),
    ("docs/cli.md", "every command and option"),
    ("docs/space.md", "these pages, their permissions and limits"),
    ("docs/runner.md", "operating a runner"),
    ("docs/method.md", "the method, with sources and measured figures"),
)


def add_help_page(service: Service) -> None:
    """Add the page to the route that is open."""
    head("help", signs_in=service.settings.signs_in)
    with gr.Column(elem_classes="dq-page"):
        html(_help(service.settings.repo_url))


def _help(repo_url: str) -> str:
    endpoints = [(f"<code>{name}</code>", markup.text(use)) for name, use in _ENDPOINTS]
    documents = [(_document(name, repo_url), markup.text(use)) for name, use in _DOCUMENTS]
    return (
        "<h1>Help</h1>"
        '<section class="dq-card"><h2 id="api">From a program</h2>'
        "<p>Programs use the actions of these pages with the Python package "
        "<code>gradio_client</code>:</p>"
        f'<div class="dq-line"><pre tabindex="0"><code>{_PROGRAM}</code></pre>'
        '<button type="button" data-copies aria-label="Copy: the program">Copy</button></div>'
        f"{markup.table(('Endpoint', 'Use'), endpoints, align='ll', name='Endpoints')}"
        '<p><a href="gradio_api/info">Parameters of the endpoints as JSON</a></p></section>'
        '<section class="dq-card"><h2>Documentation</h2>'
        f"{markup.table(('File', 'Content'), documents, align='ll', name='Documents')}</section>"
    )


def _document(name: str, repo_url: str) -> str:
    """A file of the repository, as a link where the repository has an address."""
    return markup.link(name, f"{repo_url}/{name}") if repo_url else f"<code>{name}</code>"
