"""How to run a published model, as HTML: a button for LM Studio, and lines with copy buttons."""

from __future__ import annotations

from dynquant.report.facts import ModelFacts
from dynquant.report.running import RunLine, lm_studio_url, run_lines
from dynquant.web import markup

__all__ = ["run_view"]


def run_view(facts: ModelFacts, repo_id: str, *, hub_url: str) -> str:
    """The ways to run the model of a repo; `every_page.js` copies the lines."""
    url = lm_studio_url(repo_id, hub_url=hub_url)
    button = f'<p><a class="dq-button" href="{markup.text(url)}">Open in LM Studio</a></p>'
    lines = run_lines(facts, repo_id, hub_url=hub_url)
    first = "".join(_line(each) for each in lines if each.is_first_choice)
    more = "".join(_line(each) for each in lines if not each.is_first_choice)
    folded = f"<details><summary>More ways to run it</summary>{more}</details>" if more else ""
    return f'<div class="dq-run">{button if url else ""}{first}{folded}</div>'


def _line(line: RunLine) -> str:
    install = f"<small>pip install {line.package}</small>" if line.package else ""
    purpose = markup.text(line.purpose)
    return (
        f'<p class="dq-purpose">{purpose}{install}</p>'
        f'<div class="dq-line"><pre tabindex="0"><code>{markup.text(line.command)}</code></pre>'
        f'<button type="button" data-copies aria-label="Copy: {purpose}">Copy</button></div>'
    )
