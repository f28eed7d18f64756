"""The tables of the job queue, beside those of DBOS."""

from __future__ import annotations

import sqlalchemy as sa

__all__ = ["VERSION", "jobs", "log", "metadata", "quarantine", "runners", "schema", "submissions"]

VERSION = 2
"""Of these tables, of the documents in them, and of DBOS's own tables: raise it with each."""

metadata = sa.MetaData()

schema = sa.Table("dynquant_schema", metadata, sa.Column("version", sa.Integer, nullable=False))

# One row per job. `document` is the job; queries use the other columns.
jobs = sa.Table(
    "dynquant_jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("requester", sa.Text, nullable=False, index=True),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("submission", sa.Integer, nullable=False, index=True),
    sa.Column("has_begun", sa.Boolean, nullable=False),
    sa.Column("needed_memory_bytes", sa.BigInteger),
    sa.Column("served", sa.Integer, nullable=False),  # counts up with every job taken
    sa.Column("session", sa.Text, index=True),  # of the runner that runs it, else null
    sa.Column("busy_secs", sa.Float),  # from taking to publishing, by the runner's stopwatch
    sa.Column("document", sa.Text, nullable=False),
)

# One row per attempt. Its number orders the line, its time counts for the daily limit.
submissions = sa.Table(
    "dynquant_submissions",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("requester", sa.Text, nullable=False, index=True),
    sa.Column("at_secs", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)

runners = sa.Table(
    "dynquant_runners",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("session", sa.Text),  # of the process that is this runner; null once it stopped
    sa.Column("beat", sa.Integer, nullable=False),  # counts up while it lives
    sa.Column("beat_at_secs", sa.Float, nullable=False),  # only shown, never compared with others
    sa.Column("memory_bytes", sa.BigInteger, nullable=False),
    sa.Column("num_slots", sa.Integer, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("chip", sa.Text, nullable=False),
)

log = sa.Table(
    "dynquant_log",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.Text, nullable=False, index=True),
    sa.Column("at_secs", sa.Float, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)

quarantine = sa.Table(
    "dynquant_set_aside",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("at_secs", sa.Float, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
