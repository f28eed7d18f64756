"""The tables of what the watcher remembers."""

from __future__ import annotations

import sqlalchemy as sa

__all__ = [
    "VERSION",
    "known",
    "later",
    "mentions",
    "metadata",
    "orders",
    "reports",
    "schema",
    "turns",
]

VERSION = 2
"""Of these tables: raise it with each of them."""

metadata = sa.MetaData()

schema = sa.Table(
    "dynquant_watch_schema", metadata, sa.Column("version", sa.Integer, nullable=False)
)

# One row: whose turn it is, and how far the lists were read.
turns = sa.Table(
    "dynquant_watch_turns",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("is_paused", sa.Boolean, nullable=False),
    sa.Column("holder", sa.Text),  # who sweeps; null while nobody does
    sa.Column("held_until_secs", sa.Float, nullable=False),
    sa.Column("swept_at_secs", sa.Float),  # when the last sweep began that came to its end
    sa.Column("since_secs", sa.Float),
    sa.Column("created_secs", sa.Float),
    sa.Column("modified_secs", sa.Float),
)

known = sa.Table(
    "dynquant_watch_known",
    metadata,
    sa.Column("repo_id", sa.Text, primary_key=True),
    sa.Column("sha", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("skip", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False, index=True),  # the latest is the greatest
)

later = sa.Table(
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
