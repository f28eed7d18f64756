"""Pieces of HTML. `text` escapes every string from outside."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from dynquant.errors import DynquantError, Reason
from dynquant.jobs.job import Job, JobState
from dynquant.report.svg import escaped as text
from dynquant.web.labels import STATES

__all__ = [
    "bar",
    "data_url",
    "empty",
    "facts",
    "job_link",
    "link",
    "loading",
    "moment",
    "notice",
    "picture",
    "refusal",
    "state_tag",
    "table",
    "text",
]


def link(label: str, url: str) -> str:
    """A link to another site."""
    is_web = url.startswith(("https://", "http://"))
    if not is_web:
        return text(label)
    return f'<a href="{text(url)}" target="_blank" rel="noopener noreferrer">{text(label)}</a>'


def job_link(job_id: str, label: str) -> str:
    """A link to the page of a job."""
    return f'<a href="job?job={quote(job_id, safe="")}">{text(label)}</a>'


def notice(title: str, sentence: str, *, kind: str = "plain") -> str:
    """A message that stands out: `plain`, `bad` or `good`."""
    role = "alert" if kind == "bad" else "status"
    return (
        f'<div class="dq-notice dq-{kind}" role="{role}"><strong>{text(title)}</strong>'
        f"<p>{text(sentence)}</p></div>"
    )


def refusal(title: str, error: DynquantError, *, page: str) -> str:
    """The message of an error, with the button to sign in where that is missing.

    Args:
        title: The action that failed, such as `Not queued`.
        error: Its reason.
        page: Path and query to come back to after a sign-in; empty where visitors cannot sign in.
    """
    if error.reason is not Reason.NOT_SIGNED_IN or not page:
        return notice(title, str(error), kind="bad")
    # Escaped whole, else the target would end at its first `&`.
    target = f"login/huggingface?_target_url={quote(page, safe='')}"
    return (
        f'<div class="dq-notice dq-bad" role="alert"><strong>{text(title)}</strong>'
        f'<p>{text(str(error))}</p><p><a class="dq-button" href="{target}">'
        "Sign in with Hugging Face</a></p></div>"
    )


def empty(title: str, sentence: str) -> str:
    """A placeholder where there is no content yet."""
    return f'<div class="dq-empty"><strong>{text(title)}</strong><p>{text(sentence)}</p></div>'


def loading(sentence: str) -> str:
    """A placeholder while content is loading."""
    return f'<div class="dq-loading" role="status"><span></span>{text(sentence)}</div>'


def moment(at: datetime, *, is_clock: bool = False) -> str:
    """A time in UTC, which `every_page.js` turns into that of the visitor's place.

    Args:
        at: The time.
        is_clock: Whether to show hours, minutes and seconds instead of the day and minutes.
    """
    there = at.astimezone(UTC)
    shown = f"{there:%H:%M:%S} UTC" if is_clock else f"{there:%-d %b %H:%M} UTC"
    clock = " data-clock" if is_clock else ""
    return f'<time datetime="{there:%Y-%m-%dT%H:%M:%SZ}"{clock}>{shown}</time>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values; values are HTML already."""
    items = "".join(f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>" for name, value in rows)
    return f'<dl class="dq-facts">{items}</dl>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, align: str, name: str) -> str:
    """A table; on a phone each row is a block, with its cells and their names below each other.

    Args:
        header: One word per column.
        rows: As many cells each, HTML already; the first one names its row.
        align: One letter per column: `l` or `r`.
        name: Its label for screen readers.
    """
    sides = [' class="dq-right"' if side == "r" else "" for side in align]
    # A style sheet that changes the display of a table removes its roles, so they are set.
    head = "".join(
        f'<th role="columnheader" scope="col"{side}>{text(cell)}</th>'
        for side, cell in zip(sides, header, strict=True)
    )
    body = "".join(
        '<tr role="row">'
        + "".join(
            f'<td role="cell" data-name="{text(column)}"{side}>{cell}</td>'
            if place
            else f'<th role="rowheader" scope="row"{side}>{cell}</th>'
            for place, (column, side, cell) in enumerate(zip(header, sides, cells, strict=True))
        )
        + "</tr>"
        for cells in rows
    )
    return (
        f'<div class="dq-scroll" role="region" aria-label="{text(name)}" tabindex="0">'
        f'<table class="dq-table" role="table"><thead role="rowgroup"><tr role="row">{head}</tr>'
        f'</thead><tbody role="rowgroup">{body}</tbody></table></div>'
    )


def state_tag(job: Job) -> str:
    """The state of a job as a small label."""
    good = {JobState.PUBLISHED: "good", JobState.REFUSED: "bad", JobState.FAILED: "bad"}
    busy = "busy" if job.state is JobState.RUNNING else "plain"
    return f'<span class="dq-tag dq-{good.get(job.state, busy)}">{STATES[job.state]}</span>'


def bar(fraction: float, label: str) -> str:
    """A progress bar."""
    share = 100 * min(max(fraction, 0.0), 1.0)
    return (
        f'<div class="dq-bar" role="progressbar" aria-label="{text(label)}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share:.0f}"><div style="width:{share:.1f}%"></div>'
        "</div>"
    )


def picture(light: str, dark: str, *, name: str) -> str:
    """An SVG for light and for dark pages, as images, in which scripts do not run."""
    images = "".join(
        f'<img class="dq-only-{theme}" alt="{text(name)}" src="{data_url(svg)}">'
        for theme, svg in (("light", light), ("dark", dark))
    )
    label = text(name)
    return f'<div class="dq-picture" role="region" aria-label="{label}" tabindex="0">{images}</div>'


def data_url(svg: str) -> str:
    """An SVG as a data URL."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
