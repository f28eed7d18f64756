from __future__ import annotations

from importlib.metadata import version

import mlx.core as mx

from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.generation_speed import machine_name
from dynquant.quant.mlx.kernel_timing import measure_kernels

FORMATS = [QuantFormat.from_name(name) for name in ("4g64", "mxfp4", "unquantized")]


def test_every_format_is_timed_dense_and_by_experts():
    steps = []
    found = measure_kernels(
        FORMATS, widths=(64, 128), batches=(1, 8), on_kernel=lambda: steps.append(1)
    )
    assert (found.machine, found.mlx_version) == (machine_name(), version("mlx"))
    assert len(steps) == len(FORMATS) * 2 * 2
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    for fmt in FORMATS:
        for by_experts, sizes in ((False, (64**2, 128**2)), (True, (4 * 64**2, 4 * 128**2))):
            timed = {
                (t.num_weights, t.batch)
                for t in found.times
                if t.fmt == fmt and t.by_experts is by_experts
            }
            wanted = {(size, batch) for size in sizes for batch in (1, 8)}
            assert timed == (set() if by_experts and on_cpu and fmt == UNQUANTIZED else wanted)
    assert all(t.secs > 0 for t in found.times)
    assert found.secs_per_block >= 0
    assert found.secs_per_token >= 0
