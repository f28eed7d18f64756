"""The machines that the Hub rents for Jobs, and their prices, as documented in 2026."""

from __future__ import annotations

from typing import Any

# name, CPU, memory, disk, GPUs, GPU, memory of all GPUs, micro-dollars a minute
_ROWS = (
    ("cpu-basic", "2 vCPU", "16 GB", "50 GB", 0, "", "", 167),
    ("cpu-upgrade", "8 vCPU", "32 GB", "50 GB", 0, "", "", 500),
    ("cpu-xl", "16 vCPU", "124 GB", "1000 GB", 0, "", "", 16_667),
    ("t4-small", "4 vCPU", "15 GB", "50 GB", 1, "T4", "16 GB", 6_667),
    ("t4-medium", "8 vCPU", "30 GB", "100 GB", 1, "T4", "16 GB", 10_000),
    ("a10g-small", "4 vCPU", "15 GB", "110 GB", 1, "A10G", "24 GB", 16_667),
    ("a10g-large", "12 vCPU", "46 GB", "200 GB", 1, "A10G", "24 GB", 25_000),
    ("a100-large", "12 vCPU", "142 GB", "1000 GB", 1, "A100", "80 GB", 41_667),
    ("a100x4", "48 vCPU", "568 GB", "4000 GB", 4, "A100", "320 GB", 166_667),
    ("h200", "23 vCPU", "256 GB", "3000 GB", 1, "H200", "141 GB", 83_333),
    ("h200x8", "184 vCPU", "2048 GB", "24000 GB", 8, "H200", "1128 GB", 666_667),
    ("rtx-pro-6000", "23 vCPU", "256 GB", "475 GB", 1, "RTX PRO 6000", "96 GB", 45_833),
    ("l4x1", "8 vCPU", "30 GB", "400 GB", 1, "L4", "24 GB", 13_333),
    ("l4x4", "48 vCPU", "186 GB", "3200 GB", 4, "L4", "96 GB", 63_333),
    ("l40sx1", "8 vCPU", "62 GB", "380 GB", 1, "L40S", "48 GB", 30_000),
)  # fmt: skip


def hardware() -> list[dict[str, Any]]:
    """A new list in the form of `GET /api/jobs/hardware`."""
    return [
        {
            "name": name,
            "prettyName": f"{quantity}x Nvidia {model}" if quantity else name,
            "cpu": cpu,
            "ram": ram,
            "ephemeralStorage": disk,
            "accelerator": {
                "type": "gpu",
                "model": model,
                "quantity": str(quantity),
                "vram": vram,
                "manufacturer": "Nvidia",
            }
            if quantity
            else None,
            "unitCostMicroUSD": micro_usd,
            "unitCostUSD": micro_usd / 1e6,
            "unitLabel": "minute",
        }
        for name, cpu, ram, disk, quantity, model, vram, micro_usd in _ROWS
    ]
