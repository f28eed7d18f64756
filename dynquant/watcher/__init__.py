"""The watcher: newly uploaded models converted by themselves, and never the wrong ones."""

from dynquant.watcher.inspecting import Look
from dynquant.watcher.schedule import ScheduledSweeps, parse_cron
from dynquant.watcher.watching import Watcher
from dynquant.watcher.webhook import (
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
