"""Machines for rent, and the needs of a conversion."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from dynquant.rented.budget import price_labels
from dynquant.rented.hardware import Flavor
from dynquant.rented.job import RentedJob, Stage
from dynquant.rented.needs import Needs
from dynquant.rented.offer import offer_for

__all__ = ["GB", "OFFER", "make_flavor", "make_job", "make_needs"]

GB = 10**9


def make_flavor(**overrides: Any) -> Flavor:
    """One L4, as the Hub rents it."""
    fields: dict[str, Any] = {
        "name": "l4x1",
        "gpu": "L4",
        "gpu_bytes": 24 * GB,
        "memory_bytes": 30 * GB,
        "disk_bytes": 400 * GB,
        "micro_usd_per_minute": 13_333,
    }
    return Flavor(**fields | overrides)


def make_needs(**overrides: Any) -> Needs:
    """A conversion of a model of about 8 B weights."""
    fields: dict[str, Any] = {
        "memory_bytes": 6 * GB,
        "disk_bytes": 40 * GB,
        "transfer_secs": 400.0,
        "compute_secs": 1_200.0,
    }
    return Needs(**fields | overrides)


OFFER = offer_for(make_needs(), [make_flavor()])


def make_job(**overrides: Any) -> RentedJob:
    """A Job of that offer, which runs."""
    fields: dict[str, Any] = {
        "namespace": "you",
        "id": "c0ffee",
        "url": "https://hub.example/jobs/you/c0ffee",
        "stage": Stage.RUNNING,
        "message": "",
        "flavor": OFFER.flavor.name,
        "running_secs": 0,
        "created_at": datetime(2026, 11, 30, tzinfo=UTC),
        "labels": price_labels(OFFER),
    }
    return RentedJob(**fields | overrides)
