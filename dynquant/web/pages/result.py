"""What came of a job: the repos, their figures, their pictures, the card."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from dynquant.core import verdict
from dynquant.core.facts import ModelFacts, QuantizedRow
from dynquant.core.figures import percent, significant, size, with_error
from dynquant.core.job import Job, PublishedRepo
from dynquant.core.ladder import ladder_svg
from dynquant.core.papers import card
from dynquant.core.picture import layer_bits_svg
from dynquant.errors import DynquantError
from dynquant.web import markup
from dynquant.web.service import Service

__all__ = ["card_of", "command", "quality_table", "result_of"]

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_PICTURE = re.compile(r"<picture>.*?</picture>\n*", re.DOTALL)


def result_of(job: Job, service: Service) -> tuple[str, tuple[ModelFacts, ...]]:
    """The results of a published job, and what their repos say of themselves."""
    parts, found = [], []
    for each in job.results:
        link = markup.link(each.repo_id, service.search.page_url(each.repo_id))
        try:
            facts = service.catalogue.facts(each.repo_id, each.commit_sha)
        except DynquantError as error:
            figures = markup.notice("Its figures cannot be shown", str(error))
        else:
            found.append(facts)
            figures = _figures(each, facts, is_only=len(job.results) == 1)
        parts.append(f'<section class="dq-card"><h2>{link}</h2>{figures}</section>')
    if found and len(found[0].ladder) > 1:
        parts.insert(0, f'<section class="dq-ladder">{_ladder(found[0])}</section>')
    return "".join(parts), tuple(found)


def _figures(repo: PublishedRepo, facts: ModelFacts, *, is_only: bool) -> str:
    bits = _bits(facts)
    if not is_only:
        bits = f"<details><summary>Bits of each layer</summary>{bits}</details>"
    return (
        f'<p class="dq-lead">{markup.text(verdict.recommendation(facts))}</p>'
        f"{command(repo.repo_id)}{quality_table(facts.rows)}{bits}"
    )


def card_of(facts: ModelFacts, job: Job) -> str:
    """The card as Markdown; its pictures stand above it already."""
    repo_of = {each.repo_id.rpartition("/")[2]: each.repo_id for each in job.results}
    text = card(facts, repo_id=job.results[0].repo_id, repo_of=repo_of)
    return _PICTURE.sub("", _FRONT_MATTER.sub("", text))


def command(repo_id: str) -> str:
    """The line that runs a model."""
    line = f'mlx_lm.generate --model {shlex.quote(repo_id)} --prompt "Hello"'
    return f'<pre class="dq-command" tabindex="0"><code>{markup.text(line)}</code></pre>'


def quality_table(rows: Sequence[QuantizedRow]) -> str:
    """Original, uniform quant and result beside each other."""
    header = ("", "Bits per weight", "Size", "Perplexity", "Mean KL, nats", "Top-1 agreement")
    return markup.table(
        header,
        [_row(row, is_ours=row is rows[-1]) for row in rows],
        align="lrrrrr",
        name="Quality beside the original and a uniform quant",
    )


def _row(row: QuantizedRow, *, is_ours: bool) -> tuple[str, ...]:
    quality, label = row.quality, markup.text(row.label)
    figures = (
        significant(row.stored_bpw, 4),
        size(row.num_bytes),
        with_error(quality.perplexity, quality.perplexity_se, digits=4),
        with_error(quality.mean_kl_nats, quality.mean_kl_se_nats, digits=3),
        percent(quality.top1_agreement, decimals=1),
    )
    return (f"<strong>{label}</strong>" if is_ours else label, *map(markup.text, figures))


def _bits(facts: ModelFacts) -> str:
    light, dark = (layer_bits_svg(facts, dark=dark) for dark in (False, True))
    return markup.picture(light, dark, name="Stored bits per weight of each layer, block by block")


def _ladder(facts: ModelFacts) -> str:
    light, dark = (ladder_svg(facts, dark=dark) for dark in (False, True))
    return markup.picture(light, dark, name="Mean KL against stored size, for all sizes")
