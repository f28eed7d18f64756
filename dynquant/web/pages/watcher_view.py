"""The watcher as HTML: its rules, its last sweeps, queued and skipped models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from dynquant.jobs.job import Job
from dynquant.report.numbers import count
from dynquant.watch.config import Rule
from dynquant.watch.records import SeenModel, SweepReport
from dynquant.watch.skips import Skip
from dynquant.watch.status import WatchStatus
from dynquant.web import labels, markup

__all__ = ["no_rules_view", "watcher_view"]

_GIB = 1 << 30
_NUM_SHOWN = 20


def watcher_view(
    status: WatchStatus, jobs: Mapping[str, Job], *, page_url: Callable[[str], str]
) -> str:
    """The watcher.

    Args:
        status: Its setup and its last sweeps.
        jobs: Id → job, for the jobs that are known here.
        page_url: Address of a model's page on the Hub.
    """
    queued = [seen for seen in status.latest if seen.job_id]
    skipped = [seen for seen in status.latest if seen.skip is not None and not seen.job_id]
    return "".join(
        (
            _state(status),
            _last(status.reports),
            _queued(queued[:_NUM_SHOWN], jobs),
            _skipped(skipped[:_NUM_SHOWN], page_url),
            _sweeps(status.reports),
            _rules(status),
        )
    )


def no_rules_view() -> str:
    """The page without a file of rules."""
    return markup.empty(
        "No rules set",
        "The watcher converts new models on the Hub automatically. Write rules as in "
        "space_config/watch.yaml, set DYNQUANT_WATCH_CONFIG to that file, and start again.",
    )


def _state(status: WatchStatus) -> str:
    kind, word, sentence = "good", "Watching", _rhythm(status.cron)
    if status.is_paused:
        kind, word, sentence = "plain", "Paused", "It queues nothing until it is resumed."
    elif status.is_sweeping:
        kind, word = "busy", "Sweeping now"
    elif status.problem:
        kind, word, sentence = "bad", "Stopped", "It continues once its rules can be read."
    over = (
        f'<p class="dq-over"><span class="dq-tag dq-{kind}">{word}</span> '
        f"{markup.text(sentence)}</p>"
    )
    if status.problem:
        over += markup.notice("The rules cannot be read", status.problem, kind="bad")
    return over


def _rhythm(cron: str) -> str:
    minutes = cron.removesuffix(" * * * *").removeprefix("*/")
    if cron == f"*/{minutes} * * * *" and minutes.isdigit():
        return f"It looks for new models every {minutes} minutes."
    return f"It looks for new models by the schedule '{cron}', in UTC."


def _last(reports: Sequence[SweepReport]) -> str:
    """The last sweep, with its reasons to skip models."""
    if not reports:
        return markup.empty("No sweep yet", "The schedule starts the first sweep.")
    report = reports[0]
    figures = (
        ("Models seen", count(report.num_seen)),
        ("Matched", str(report.num_matched)),
        ("Queued", str(len(report.queued))),
        ("Skipped", count(sum(report.skipped.values()))),
        ("API calls", str(report.num_calls)),
        ("Took", _took(report)),
    )
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    trouble = markup.notice("The sweep did not finish", report.sentence) if report.sentence else ""
    rows = [
        (f"<code>{reason}</code>", str(number), markup.text(reason.sentence))
        for reason, number in sorted(report.skipped.items(), key=lambda each: -each[1])
    ]
    reasons = (
        markup.table(("Reason", "Models", "Meaning"), rows, align="lrl", name="Reasons to skip")
        if rows
        else ""
    )
    return (
        f"<h2>The last sweep <small>{markup.moment(report.started_at)}</small></h2>"
        f'<dl class="dq-tiles dq-totals">{tiles}</dl>{trouble}'
        f'<div class="dq-reasons">{reasons}</div>'
    )


def _queued(queued: Sequence[SeenModel], jobs: Mapping[str, Job]) -> str:
    title = "<h2>Queued</h2>"
    if not queued:
        return title + markup.empty("Nothing queued yet", "No new model has matched a rule.")
    return f'{title}<ul class="dq-jobs">{"".join(_order(each, jobs) for each in queued)}</ul>'


def _order(seen: SeenModel, jobs: Mapping[str, Job]) -> str:
    job = jobs.get(seen.job_id)
    about, how = f"commit {seen.sha[:8]}", ""
    if job is not None:
        about = f"{labels.bpw_list(job.request.targets_bpw)} bits per weight · {about}"
        how = markup.state_tag(job)
    return (
        f"<li><div><strong>{markup.job_link(seen.job_id, seen.repo_id)}</strong>"
        f'<small>{markup.text(about)}</small></div><div class="dq-how">{how}</div></li>'
    )


def _skipped(skipped: Sequence[SeenModel], page_url: Callable[[str], str]) -> str:
    """Models that were skipped after a look at their files, not from the list alone."""
    if not skipped:
        return ""
    items = "".join(
        f"<li><div><strong>{markup.link(each.repo_id, page_url(each.repo_id))}</strong></div>"
        f'<div class="dq-how"><small><code>{each.skip}</code> '
        f"{markup.text(each.skip.sentence)}</small></div></li>"
        for each in skipped
        if each.skip is not None
    )
    return f'<h2>Skipped after a close look</h2><ul class="dq-jobs">{items}</ul>'


def _sweeps(reports: Sequence[SweepReport]) -> str:
    if not reports:
        return ""
    rows = [
        (
            markup.moment(each.started_at),
            count(each.num_seen),
            str(each.num_matched),
            str(len(each.queued)),
            _reasons(each.skipped),
            str(each.num_calls),
            _took(each),
        )
        for each in reports
    ]
    header = ("Began", "Seen", "Matched", "Queued", "Skipped", "API calls", "Took")
    table = markup.table(header, rows, align="lrrrlrr", name="Last sweeps")
    return f"<h2>Last sweeps</h2>{table}"


def _took(report: SweepReport) -> str:
    is_short = report.secs < 60  # noqa: PLR2004
    return f"{report.secs:.1f} s" if is_short else labels.duration(report.secs)


def _reasons(skipped: Mapping[Skip, int]) -> str:
    """The total, and the most frequent reasons."""
    most = sorted(skipped.items(), key=lambda each: -each[1])
    named = ", ".join(f"{reason} {number}" for reason, number in most[:3])
    rest = len(most) - 3
    more = f" and {rest} more" if rest > 0 else ""
    total = count(sum(skipped.values()))
    return f"{total}<small>{markup.text(named + more)}</small>" if named else total


def _rules(status: WatchStatus) -> str:
    if status.config is None:
        return ""
    rules = "".join(map(_rule, status.config.rules))
    return f"<h2>Rules <small>the first matching rule applies</small></h2>{rules}"


def _rule(rule: Rule) -> str:
    made = (
        f"the largest quants for {_listed(f'{each / _GIB:g} GB' for each in rule.memory_bytes)}"
        if rule.memory_bytes
        else f"{labels.bpw_list(rule.bpw)} bits per weight"
    )
    rows = [
        ("Takes", markup.text(" · ".join(_criteria(rule)) or "every model")),
        ("Makes", markup.text(made)),
        ("Publishes to", f"<code>{markup.text(rule.destination)}</code>"),
        ("At most", markup.text(" · ".join(_limits(rule)))),
    ]
    if rule.mention:
        rows.append(("Tells authors", "with one discussion in the model's repo"))
    title = f"<h2>{markup.text(rule.name)}</h2>"
    return f'<section class="dq-card dq-rule">{title}{markup.facts(rows)}</section>'


def _criteria(rule: Rule) -> list[str]:
    """The criteria of a rule, in words."""
    criteria: tuple[tuple[object, str], ...] = (
        (rule.authors, f"by {_listed(rule.authors, 'or')}"),
        (rule.search, f"'{rule.search}' in the name"),
        (rule.pipeline_tags, _listed(rule.pipeline_tags, "or")),
        (rule.tags, f"tagged {_listed(rule.tags)}"),
        (rule.without_tags, f"not tagged {_listed(rule.without_tags, 'or')}"),
        (rule.architectures, _listed(rule.architectures, "or")),
        (rule.min_parameters, f"from {count(rule.min_parameters)} parameters"),
        (rule.max_parameters, f"up to {count(rule.max_parameters or 0)} parameters"),
        (rule.licenses, f"licensed {_listed(rule.licenses, 'or')}"),
        (rule.licenses_refused, f"not licensed {_listed(rule.licenses_refused, 'or')}"),
        (rule.unknown_license, "with or without a license"),
        (rule.min_likes, f"{rule.min_likes:,} likes or more"),
        (rule.min_downloads, f"{rule.min_downloads:,} downloads or more"),
        (rule.min_trending, f"trending score {rule.min_trending:g} or more"),
        (rule.min_age_hours, f"older than {_hours(rule.min_age_hours)}"),
        (rule.max_age_hours, f"younger than {_hours(rule.max_age_hours or 0)}"),
        (rule.gated, "also gated models"),
    )
    return [sentence for given, sentence in criteria if given]


def _limits(rule: Rule) -> Iterator[str]:
    yield f"{rule.max_per_sweep} a sweep"
    if rule.gb_per_day is not None:
        yield f"{rule.gb_per_day:g} GB a day"
    if rule.hours_per_day is not None:
        yield f"{rule.hours_per_day:g} hours of work a day"


def _listed(names: Sequence[str] | Iterator[str], last: str = "and") -> str:
    found = list(names)
    return f" {last} ".join([", ".join(found[:-1]), found[-1]] if len(found) > 1 else found)


def _hours(hours: float) -> str:
    return labels.duration(3600 * hours)
