from __future__ import annotations

import ctypes
import mmap
import os
import sys
from contextlib import nullcontext

import mlx.core as mx
import pytest

from dynquant.quant.mlx.backward import backward
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.readahead import ReadAhead, Span
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward
from tests.quant.mlx.factories import make_batches, save_model
from tests.waiting import wait_until


def test_a_block_lies_at_the_offsets_of_the_header(tmp_path):
    blocks = {f"model.layers.{n}.up.weight": mx.full((4,), float(n)) for n in range(12)}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"embed": mx.zeros(3), **blocks})
    for block, value in (("model.layers.1", 1.0), ("language_model.layers.11", 11.0)):
        (span,) = ReadAhead(tmp_path).spans_of(block)
        raw = span.file.read_bytes()[span.start : span.start + span.num_bytes]
        assert memoryview(raw).cast("f").tolist() == [value] * 4
    assert list(ReadAhead(tmp_path).spans_of("h.1")) == []


def cached_share(span: Span) -> float:
    """Of the pages that hold `span`, those that the system has in memory."""
    page = mmap.PAGESIZE
    first, last = span.start // page, (span.start + span.num_bytes - 1) // page
    with span.file.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE)
    there = (ctypes.c_ubyte * (last + 1))()
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapped))
    libc = ctypes.CDLL(None, use_errno=True)
    length = ctypes.c_size_t((last + 1) * page)
    assert libc.mincore(ctypes.c_void_p(address), length, there) == 0
    return sum(each & 1 for each in there[first:]) / (last + 1 - first)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what it has in memory")
def test_the_system_reads_the_bytes_that_it_is_asked_for(tmp_path):
    weights = {f"model.layers.{n}.up.weight": mx.ones(1 << 20) for n in range(3)}
    file = tmp_path / "model.safetensors"
    mx.save_safetensors(str(file), weights)
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    ahead = ReadAhead(tmp_path)
    (span,) = ahead.spans_of("model.layers.1")
    if cached_share(span) > 0.5:
        pytest.skip("this file system keeps its files in memory")
    ahead("model.layers.1")
    wait_until(lambda: cached_share(span) == 1)


def test_an_unreadable_file_is_reported_by_the_reader_of_the_weights(tmp_path):
    ReadAhead(tmp_path / "nowhere")("model.layers.0")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    ReadAhead(tmp_path)("model.layers.0")


def test_a_pass_asks_for_the_block_before_it_is_needed_both_ways(tmp_path):
    model = open_model(save_model(tmp_path / "model", num_hidden_layers=4))
    asked, batches = list[str](), make_batches()
    blocks = BlockModel(model.skeleton, asked.append)
    forward = Forward(blocks, BlockWeights(blocks, model.lazy_weights), batches, record=[0])
    list(forward.run())
    paths = list(blocks.blocks)
    assert asked == paths[1:]
    asked.clear()

    class Nothing:
        def primals(self, _block):
            return {}

        def applied(self, _primals):
            return nullcontext()

        def take(self, _gradients):
            return []

    backward(
        forward,
        BlockWeights(blocks, model.lazy_weights),
        loss=lambda _index, logits: logits.sum(),
        targets=Nothing(),
    )
    assert asked == paths[-2::-1]
