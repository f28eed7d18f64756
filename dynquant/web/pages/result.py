"""The results of a job: repos, figures, pictures, and the card."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from dynquant.errors import DynquantError
from dynquant.jobs.job import Job, PublishedRepo
from dynquant.report import quality_summary
from dynquant.report.facts import ModelFacts, QuantizedRow
from dynquant.report.finished_files import card, file_contents
from dynquant.report.numbers import percent, significant, size, with_error
from dynquant.report.size_plot import size_plot_svg
from dynquant.web import markup
from dynquant.web.bits_chart import bits_chart
from dynquant.web.pages.run_view import run_view
from dynquant.web.service import Service
from dynquant.web.sparkline import sparkline

__all__ = ["card_of", "quality_table", "result_of"]

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_LM_STUDIO = re.compile(r"^\*\*\[[^]]*\]\(lmstudio:.*\n\n", re.MULTILINE)
_PICTURE = re.compile(
    r'<picture>.*?srcset="(?P<dark>[^"]+)".*?alt="(?P<alt>[^"]+)" src="(?P<light>[^"]+)".*?'
    r"</picture>",
    re.DOTALL,
)


def result_of(job: Job, service: Service) -> tuple[str, tuple[ModelFacts, ...]]:
    """The results of a published job as HTML, and the facts in their repos."""
    parts, found = [], []
    is_only = len(job.results) == 1
    for each in job.results:
        link = markup.link(each.repo_id, service.search.page_url(each.repo_id))
        try:
            facts = service.finished_models.facts(each.repo_id, each.commit_sha)
        except DynquantError as error:
            about = markup.notice("Its figures cannot be shown", str(error))
        else:
            found.append(facts)
            about = _about(each, facts, service.search.page_url(""), is_only=is_only)
        parts.append(f'<section class="dq-card"><h2>{link}</h2>{about}</section>')
    if len(found) > 1:
        parts.insert(0, _all_sizes(found))
    return "".join(parts), tuple(found)


def _about(repo: PublishedRepo, facts: ModelFacts, hub_url: str, *, is_only: bool) -> str:
    about = f'<p class="dq-lead">{markup.text(quality_summary.recommendation(facts))}</p>'
    about += run_view(facts, repo.repo_id, hub_url=hub_url)
    chart = bits_chart(facts)
    if is_only:
        return about + quality_table(facts.rows) + chart
    return f"{about}<details><summary>Bits of each layer</summary>{chart}</details>"


def _all_sizes(found: Sequence[ModelFacts]) -> str:
    """All sizes of a model side by side."""
    light, dark = (size_plot_svg(found[0], dark=dark, is_about_one=False) for dark in (False, True))
    name = "Mean KL against stored size, for all sizes"
    small = sparkline(found[0].variants)
    return (
        f'<section class="dq-ladder">{markup.picture(light, dark, name=name)}'
        f'<figure class="dq-small">{small}<figcaption>{name}</figcaption></figure></section>'
        f'<section class="dq-card"><h2>Quality of all sizes</h2>{_quality_of_all(found)}</section>'
    )


def _quality_of_all(found: Sequence[ModelFacts]) -> str:
    """The original, then uniform quants and ours, largest first."""
    uniform = {row.label: row for facts in found for row in facts.rows[1:-1]}
    ours = [
        replace(facts.rows[-1], label=f"dynquant, {facts.plan.target_bpw:g} bits")
        for facts in found
    ]
    others = sorted([*uniform.values(), *ours], key=lambda row: -row.stored_bpw)
    return _table([found[0].rows[0], *others], ours={row.label for row in ours})


def card_of(facts: ModelFacts, job: Job, *, hub_url: str) -> str:
    """The card as Markdown with embedded pictures, since the page has no files to link to."""
    repo_of = {each.repo_id.rpartition("/")[2]: each.repo_id for each in job.results}
    text = card(facts, repo_id=job.results[0].repo_id, repo_of=repo_of, hub_url=hub_url)
    files = file_contents(facts, None)

    def drawn(found: re.Match[str]) -> str:
        return markup.picture(files[found["light"]], files[found["dark"]], name=found["alt"])

    # Gradio removes the address of LM Studio; its button stands above the card.
    return _PICTURE.sub(drawn, _LM_STUDIO.sub("", _FRONT_MATTER.sub("", text)))


def quality_table(rows: Sequence[QuantizedRow]) -> str:
    """Original, uniform quant and result side by side."""
    return _table(rows, ours={rows[-1].label})


def _table(rows: Sequence[QuantizedRow], *, ours: Collection[str]) -> str:
    header = ("", "Bits per weight", "Size", "Perplexity", "Mean KL, nats", "Top-1 agreement")
    return markup.table(
        header,
        [_row(row, is_ours=row.label in ours) for row in rows],
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
