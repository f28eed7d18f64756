"""The tables of the watcher's state."""

from __future__ import annotations

import sqlalchemy as sa

__all__ = [
    "VERSION",
    "lease",
    "mentions",
    "metadata",
    "orders",
    "postponed_models",
    "reports",
    "schema",
    "seen_models",
]

VERSION = 2
"""Of these tables; goes up with every change to them."""

metadata = sa.MetaData()

schema = sa.Table(
    "dynquant_watch_schema", metadata, sa.Column("version", sa.Integer, nullable=False)
)

# One row: the lease of the process that sweeps, and the position in the Hub's lists.
lease = sa.Table(
    "dynquant_watch_turns",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("is_paused", sa.Boolean, nullable=False),
    sa.Column("holder", sa.Text),  # null while no process sweeps
    sa.Column("held_until_secs", sa.Float, nullable=False),
    sa.Column("swept_at_secs", sa.Float),  # start of the last finished sweep
    sa.Column("since_secs", sa.Float),
    sa.Column("created_secs", sa.Float),
    sa.Column("modified_secs", sa.Float),
)

seen_models = sa.Table(
    "dynquant_watch_known",
    metadata,
    sa.Column("repo_id", sa.Text, primary_key=True),
    sa.Column("sha", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("skip", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False, index=True),  # the latest is the greatest
)

postponed_models = sa.Table(
    "dynquant_watch_later",
    metadata,
    sa.Column("repo_id", sa.Text, primary_key=True),
    sa.Column("due_secs", sa.Float, nullable=False, index=True),
    sa.Column("since_secs", sa.Float, nullable=False),
)

orders = sa.Table(
    "dynquant_watch_orders",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("num_bytes", sa.BigInteger, nullable=False),
    sa.Column("hours", sa.Float, nullable=False),
    sa.Column("at_secs", sa.Float, nullable=False, index=True),
    sa.Column("is_submitted", sa.Boolean, nullable=False),
)

# Models whose authors are told, each once for ever; there since version 2.
mentions = sa.Table(
    "dynquant_watch_mentions",
    metadata,
    sa.Column("repo_id", sa.Text, primary_key=True),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("is_done", sa.Boolean, nullable=False),
)

reports = sa.Table(
    "dynquant_watch_reports",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("report", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
