"""Pages for people. One test looks at them with a browser, where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from local_hub import LocalHub
from local_hub.markdown import card_html
from tests.local_hub.conftest import TOKEN
from tests.waiting import PATIENCE_SECS

pytestmark = pytest.mark.hub

GOLDEN = Path(__file__).parents[1] / "report" / "golden"
REPO = "team/Qwen3-0.6B-MLX-4.5bpw"
CHROMIUM = shutil.which("chromium")
ATTACK = """# Hi

<script>document.title = 'ran'</script>
<img src=x onerror="document.title = 'ran'">
<svg onload="document.title = 'ran'"></svg>
<a href="javascript:document.title='ran'">x</a>
<iframe srcdoc="<script>parent.document.title = 'ran'</script>"></iframe>
<form action="https://evil.example"><button>x</button></form>
<meta http-equiv="refresh" content="0; url=https://evil.example">
"""


@pytest.fixture
def published(hub: LocalHub):
    files = {f"dynquant/{path.name}": path.read_bytes() for path in GOLDEN.glob("*.svg")}
    card = (GOLDEN / "card.md").read_bytes()
    return hub.add(REPO, files | {"README.md": card, "model.safetensors": bytes(1_500_000)})


def test_a_repo_is_shown_with_its_card_files_and_history(published, http: httpx2.Client):
    published.commit({"LICENSE": b"x"}, title="Add <the> license", author="alice")
    answer = http.get(f"/{REPO}")
    assert answer.status_code == 200
    page = answer.text
    assert "local stand-in" in page
    assert '<h1><span class="namespace">team/</span>Qwen3-0.6B-MLX-4.5bpw</h1>' in page
    assert '<span class="badge license">license:apache-2.0</span>' in page
    assert "library_name:" not in page  # the front matter
    assert "<h2>Quality</h2>" in page
    assert '<td align="right">' in page
    assert "<summary>" in page
    source = published.commits[published.branches["main"]].files["model.safetensors"]
    assert f'<td class="size">1.5 MB</td><td><code>{source.sha256}</code>' in page
    assert "Add &lt;the&gt; license</a><small>alice" in page


def test_pictures_of_the_card_are_there_in_light_and_dark(published, http: httpx2.Client):
    page = http.get(f"/{REPO}").text
    sources = re.findall(r'(?:src|srcset)="([^"]+)"', page)
    assert {f"/{REPO}/resolve/main/dynquant/bits-{tone}.svg" for tone in ("dark", "light")} <= {
        *sources
    }
    for source in sources:
        picture = http.get(source)
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/svg+xml")


def test_marks_say_who_may_see_a_repo(hub, http: httpx2.Client):
    hub.add("alice/secret", {}, private=True, gated="auto")
    page = http.get("/alice/secret").text
    assert '<span class="badge strong">private</span>' in page
    assert '<span class="badge strong">gated: auto</span>' in page
    assert "This repo has no README.md." in page


def test_the_card_of_a_gated_repo_is_for_its_readers(hub, http: httpx2.Client):
    hub.add("bob/gated", {"README.md": b"the secret"}, gated=True)
    page = http.get("/bob/gated").text
    assert "you are not in the authorized list" in page
    assert "the secret" not in page


def test_an_older_commit_is_shown_as_it_was(hub, http: httpx2.Client):
    repo = hub.add("alice/x", {"README.md": b"first"})
    first = repo.branches["main"]
    repo.commit({"README.md": b"second"}, branch="refs/pr/1")
    assert "second" not in http.get("/alice/x").text
    assert "<p>first</p>" in http.get(f"/alice/x/commit/{first}").text
    assert "<p>second</p>" in http.get("/alice/x/tree/refs%2Fpr%2F1").text
    assert "<p>second</p>" in http.get("/alice/x/discussions/1").text


def test_the_first_page_lists_what_one_may_see(hub, http: httpx2.Client):
    assert "no repos yet" in http.get("/").text
    hub.add("alice/model", {})
    hub.add("alice/secret", {}, private=True)
    hub.add("alice/<data>", {}, kind="dataset")
    page = http.get("/").text
    assert '<a href="/alice/model">' in page
    assert "alice/secret" in page
    assert "alice/&lt;data&gt;" in page
    del http.headers["authorization"]
    assert "alice/secret" not in http.get("/").text


def test_only_some_of_very_many_are_listed(hub, http: httpx2.Client):
    for number in range(101):
        hub.add(f"alice/m{number}", {})
    page = http.get("/").text
    assert "<small>100 of 101</small>" in page
    assert page.count("<li>") == 100


def test_there_is_no_page_for_what_there_is_not(hub, http: httpx2.Client):
    hub.renamed["alice/old"] = "alice/new"
    hub.add("alice/new", {})
    answer = http.get("/alice/none")
    assert (answer.status_code, "no such repo" in answer.text) == (404, True)
    assert http.get("/alice/new/tree/v9").status_code == 404
    assert http.get("/alice/old").headers["location"] == "/alice/new"


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("![x](a b.png)", "![x](a b.png)"),
        ("![x](a.png)", '<img src="/r/a.png" alt="x" />'),
        ("![x](https://x.org/a.png)", '<img src="https://x.org/a.png" alt="x" />'),
        ("[x](LICENSE) [y](#top) [z](/z)", '<a href="/r/LICENSE">x</a> <a href="#top">y</a>'),
        (
            '<source srcset="a.png 1x, b.png 2x">',
            '<source srcset="/r/a.png 1x, /r/b.png 2x">',
        ),
        ("<img data-src='a.png' src='a.png'>", "<img data-src='a.png' src='/r/a.png'>"),
        ("`<img src='a.png'>`", "&lt;img src='a.png'&gt;"),
        ("---\nlicense: mit\n---\n# Hi", "<h1>Hi</h1>"),
        ("~~old~~", "<s>old</s>"),
    ],
)
def test_a_card_becomes_html_with_pictures_from_its_repo(text, html):
    assert html in card_html(text, files_url="/r/")


def test_the_policy_of_a_page_lets_nothing_run(published, http: httpx2.Client):
    policy = http.get(f"/{REPO}").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert "sandbox" in policy


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_nothing_of_a_card_runs_in_a_browser(hub: LocalHub, tmp_path):
    hub.add("alice/attack", {"README.md": ATTACK.encode()})
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--no-first-run", "--dump-dom"),
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=2000",
        f"{hub.url}/login?token={TOKEN}&next=/alice/attack",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECS, check=True
    )
    assert "<h1>Hi</h1>" in done.stdout
    assert "<title>alice/attack" in done.stdout
