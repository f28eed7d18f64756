"""Pages for people: the list of repos, and a repo much as the Hub shows it."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from fastapi import APIRouter

from local_hub.access import COOKIE
from local_hub.answers import Answer, RefusalError
from local_hub.calls import PREFIXED, Call, Here
from local_hub.cards import count_parameters, metadata
from local_hub.listing import newest
from local_hub.markdown import card_html
from local_hub.records import gating, page_path
from local_hub.repos import Blob, Commit, Repo

GET = ["GET", "HEAD"]
STYLE = Path(__file__).with_name("style.css")
NUM_LISTED = 100
NUM_COMMITS = 50
KINDS = {"model": "Models", "dataset": "Datasets", "space": "Spaces"}
CARD_NAMES = {"model": "Model card", "dataset": "Dataset card", "space": "README"}
BANNER = (
    "This is a <strong>local stand-in</strong> for the Hugging Face Hub, served from this machine. "
    "It is not huggingface.co."
)

router = APIRouter()


@router.api_route("/style.css", methods=GET)
async def get_style() -> Answer:
    return Answer(200, STYLE.read_bytes(), {"Content-Type": "text/css; charset=utf-8"})


@router.api_route("/login", methods=GET)
async def get_login(call: Here, token: str = "", next: str = "/") -> Answer:  # noqa: A002
    """Let a browser see what the owner of a token may see."""
    if token not in call.hub.tokens or token in call.hub.expired_tokens:
        text = "<p>There is no such token here. Open /login?token=… with a token of this hub.</p>"
        return _page(call, "Log in", text, status=401)
    local = next if next.startswith("/") and not next.startswith("//") else "/"
    cookie = f"{COOKIE}={quote(token)}; HttpOnly; SameSite=Strict; Path=/"
    return Answer(303, b"", {"Location": quote(local, safe="/%"), "Set-Cookie": cookie})


@router.api_route("/", methods=GET)
async def get_index(call: Here) -> Answer:
    sections = [_listed(call, kind) for kind in KINDS]
    body = "".join(sections) or "<p>There are no repos yet.</p>"
    return _page(call, "Repos", f"<h1>Repos on this hub</h1>{body}")


@router.api_route(PREFIXED, methods=GET)
async def get_repo(call: Here, kind: str, repo_id: str) -> Answer:
    return _repo_page(call, kind, repo_id, "main")


@router.api_route(PREFIXED + "/tree/{revision:part}", methods=GET)
@router.api_route(PREFIXED + "/commit/{revision:part}", methods=GET)
async def get_repo_at(call: Here, kind: str, repo_id: str, revision: str) -> Answer:
    return _repo_page(call, kind, repo_id, revision)


@router.api_route(PREFIXED + "/discussions/{num:int}", methods=GET)
async def get_pull_request(call: Here, kind: str, repo_id: str, num: int) -> Answer:
    return _repo_page(call, kind, repo_id, f"refs/pr/{num}")


def _listed(call: Call, kind: str) -> str:
    repos, num_all = newest(call.hub, kind, call.user, NUM_LISTED)
    if not repos:
        return ""
    rows = "".join(
        f'<li><a href="{page_path(repo)}">{escape(repo.id)}</a> {_badges(repo, brief=True)}'
        f"<small>{_day(repo.last_modified)}</small></li>"
        for repo in repos
    )
    count = f"{len(repos)} of {num_all:,}" if num_all > len(repos) else f"{num_all:,}"
    return f'<h2>{KINDS[kind]} <small>{count}</small></h2><ul class="repos">{rows}</ul>'


def _repo_page(call: Call, kind: str, repo_id: str, revision: str) -> Answer:
    try:
        repo = call.repo(kind, repo_id)
        commit = call.commit(repo, revision)
    except RefusalError as error:
        if error.answer.status_code == 307:
            raise
        text = (
            "<h1>Not here</h1><p>There is no such repo or revision, or it is private and you are "
            "not logged in: open /login?token=… with a token of this hub.</p>"
        )
        return _page(call, "Not here", text, status=404)
    at = "" if revision == "main" else f'<p class="at">At revision <code>{escape(revision)}</code>'
    namespace, _, name = repo.id.partition("/")
    body = (
        f'<h1><span class="namespace">{escape(namespace)}/</span>{escape(name)}</h1>'
        f'<p class="badges">{_badges(repo)}</p>{at}'
        f'<nav><a href="#card">{CARD_NAMES[repo.kind]}</a><a href="#files">Files</a>'
        f'<a href="#history">History</a></nav>'
        f'<div class="columns"><article id="card">{_card(call, repo, commit, revision)}</article>'
        f"<aside>{_facts(repo, commit)}</aside></div>"
        f"{_files(repo, commit)}{_history(repo, commit)}"
    )
    return _page(call, repo.id, body)


def _badges(repo: Repo, *, brief: bool = False) -> str:
    found = metadata(repo)
    marks = [("private", "strong")] * repo.private
    if gated := gating(repo):
        marks.append((f"gated: {gated}", "strong"))
    if not brief:
        marks += [(tag, "license" if tag.startswith("license:") else "") for tag in found.tags]
    elif found.library_name:
        marks.append((found.library_name, ""))
    return "".join(f'<span class="badge {style}">{escape(label)}</span>' for label, style in marks)


def _card(call: Call, repo: Repo, commit: Commit, revision: str) -> str:
    blob = commit.files.get("README.md")
    try:
        call.require_files(repo)
    except RefusalError as error:
        return f"<p>{escape(error.answer.headers['X-Error-Message'])}</p>"
    if blob is None:
        return "<p>This repo has no README.md.</p>"
    text = blob.read().decode(errors="replace")
    files_url = f"{page_path(repo)}/resolve/{quote(revision, safe='')}/"
    return card_html(text, files_url=files_url)


def _facts(repo: Repo, commit: Commit) -> str:
    found = metadata(repo)
    parameters = count_parameters(repo)
    facts = {
        "Size of all files": _size(sum(blob.size for blob in commit.files.values())),
        "Tensors": _parameters(parameters["parameters"]) if parameters else None,
        "Library": found.library_name,
        "Task": found.pipeline_tag,
        "Base model": ", ".join(_strings(found.card.get("base_model"))),
        "License": ", ".join(_strings(found.card.get("license"))),
        "Downloads": f"{repo.downloads:,}",
        "Likes": f"{repo.likes:,}",
        "Updated": _day(repo.last_modified),
    }
    rows = "".join(
        f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value
    )
    return f"<dl>{rows}</dl>"


def _strings(value: object) -> Iterable[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value]) if item]


def _parameters(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(counts.items()))


def _files(repo: Repo, commit: Commit) -> str:
    start = f"{page_path(repo)}/resolve/{commit.sha}/"
    rows = "".join(
        f'<tr><td><a href="{start}{quote(name)}">{escape(name)}</a>{_lfs_mark(blob)}</td>'
        f'<td class="size">{_size(blob.size)}</td><td><code>{blob.sha256}</code></td></tr>'
        for name, blob in sorted(commit.files.items())
    )
    return (
        f'<section id="files"><h2>Files <small>{len(commit.files)}</small></h2>'
        '<table class="files"><thead><tr><th>Name</th><th class="size">Size</th><th>sha256</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _lfs_mark(blob: Blob) -> str:
    return ' <span class="badge">LFS</span>' if blob.lfs else ""


def _history(repo: Repo, commit: Commit) -> str:
    page = page_path(repo)
    rows = "".join(
        f'<li><a href="{page}/commit/{one.sha}">{escape(one.title)}</a>'
        f"<small>{escape(one.author)} · {_day(one.date)} · <code>{one.sha[:7]}</code></small></li>"
        for one in islice(repo.history(commit), NUM_COMMITS)
    )
    return f'<section id="history"><h2>History</h2><ul class="repos">{rows}</ul></section>'


def _size(num_bytes: int) -> str:
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _day(date: str) -> str:
    return date[:10]


def _page(call: Call, title: str, body: str, *, status: int = 200) -> Answer:
    who = f"<span>{escape(call.user)}</span>" if call.user else ""
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)} · local hub</title><link rel="stylesheet" href="/style.css">'
        f'</head><body><p class="banner">{BANNER}</p>'
        f'<header><a href="/">Local Hub</a>{who}</header><main>{body}</main></body></html>'
    )
    # Cards are other people's HTML: nothing runs, nothing is sent, nothing is fetched elsewhere.
    policy = (
        f"default-src 'none'; style-src 'self'; img-src 'self' {call.hub.cdn_url} data:; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
        "sandbox allow-same-origin allow-downloads allow-popups"
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return Answer(status, html, headers)
