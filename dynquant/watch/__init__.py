"""The watcher: newly uploaded models converted by themselves, and never the wrong ones."""

from dynquant.watch.inspecting import Look
from dynquant.watch.schedule import ScheduledSweeps, parse_cron
from dynquant.watch.watcher import Watcher
from dynquant.watch.webhook import (
    RecentEvents,
    Webhook,
    WebhookEvent,
    WebhookRefusedError,
    verify_and_parse,
)

__all__ = [
    "Look",
    "RecentEvents",
    "ScheduledSweeps",
    "Watcher",
    "Webhook",
    "WebhookEvent",
    "WebhookRefusedError",
    "parse_cron",
    "verify_and_parse",
]
