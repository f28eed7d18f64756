from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward
from tests.quant.mlx.factories import TinyModel, make_batches, make_model


def close(a: mx.array, b: mx.array, tolerance: float = 1e-6) -> bool:
    return bool(mx.allclose(a, b, rtol=tolerance, atol=tolerance).item())


def streamed_logits(tiny: TinyModel, batches: list[mx.array]) -> list[mx.array]:
    blocks = tiny.blocks()
    return list(Forward(blocks, tiny.streamed(blocks), batches).run())


def num_parameters(module: nn.Module) -> int:
    return sum(array.size for _, array in tree_flatten(module.parameters()))


class Block(nn.Module):
    """Adds something; runs `before` each time, which may fail."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width)
        self._before: Callable[[], None] = lambda: None

    def __call__(self, x: mx.array) -> mx.array:
        self._before()
        return x + self.proj(x)


class Stack(nn.Module):
    """Blocks between an embedding and a head; `order` of a batch may depend on its tokens."""

    def __init__(self, num_blocks: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, width)
        self.layers = [Block(width) for _ in range(num_blocks)]
        self.head = nn.Linear(width, 16)

    def order(self, tokens: mx.array) -> list[Block]:
        return self.layers

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.embed(tokens)
        for block in self.order(tokens):
            x = block(x)
        return self.head(x)


class Fickle(Stack):
    def order(self, tokens: mx.array) -> list[Block]:
        return self.layers[::-1] if tokens[0, 0].item() else self.layers


def tiny_of(model: nn.Module) -> TinyModel:
    mx.eval(model.parameters())
    return TinyModel(model, {}, dict(tree_flatten(model.parameters())))


def tokens_from(first: int) -> mx.array:
    return mx.array([[first, 1, 2, 3]], dtype=mx.int32)


@pytest.mark.parametrize("name", ["tiny_qwen3", "tiny_moe"])
def test_streaming_a_trained_model_gives_the_logits_of_calling_it(name, request):
    tiny = request.getfixturevalue(name)
    batches = make_batches(2, shape=(2, 64), vocab=8192)
    for batch, logits in zip(batches, streamed_logits(tiny, batches), strict=True):
        assert close(logits, tiny.plain(batch))


# Sliding windows with mixed masks, absorbed attention with experts, shared keys and values,
# a state space beside attention, blocks that run twice.
@pytest.mark.parametrize(
    "family", ["gemma3_text", "deepseek_v3", "gemma3n", "falcon_h1", "nanbeige"]
)
def test_streaming_gives_the_logits_of_calling_for_all_kinds_of_block_state(family):
    tiny, batches = make_model(family), make_batches(2, shape=(2, 12))
    for batch, logits in zip(batches, streamed_logits(tiny, batches), strict=True):
        assert close(logits, tiny.plain(batch), 1e-5)


def test_batches_of_different_lengths_advance_together(tied):
    batches = [*make_batches(1, shape=(1, 5)), *make_batches(1, shape=(3, 17))]
    for batch, logits in zip(batches, streamed_logits(tied, batches), strict=True):
        assert logits.shape == (*batch.shape, 128)
        assert close(logits, tied.plain(batch))


def test_blocks_are_stepped_through_in_the_models_order(tied):
    blocks, order = tied.blocks(), []
    forward = Forward(blocks, tied.streamed(blocks), make_batches())
    while (path := forward.next_block) is not None:
        assert forward.next_block == path  # asking changes nothing
        order.append(path)
        forward.step()
    assert order == list(blocks.blocks) == [f"model.layers.{i}" for i in range(3)]
    with pytest.raises(RuntimeError, match="all batches are through"):
        forward.step()


def test_a_looped_model_goes_through_its_blocks_twice():
    tiny = make_model("nanbeige")
    blocks, order = tiny.blocks(), []
    forward = Forward(blocks, tiny.streamed(blocks), make_batches())
    while (path := forward.next_block) is not None:
        order.append(path)
        forward.step()
    assert order == 2 * list(blocks.blocks)


def test_a_blocks_weights_are_held_during_its_step_and_freed_after_it(tied):
    blocks = tied.blocks()
    forward = Forward(blocks, tied.streamed(blocks), make_batches())
    held: list[str] = []

    def check(path: str, weights: Weights) -> None:
        held.append(path)
        assert set(weights) == {p for p in tied.weights if p.startswith(f"{path}.")}
        for other, block in blocks.blocks.items():
            assert bool(num_parameters(block)) == (other == path)
        assert len(forward.last_calls) == 2

    while forward.next_block is not None:
        forward.step(while_held=check)
        assert num_parameters(blocks.model) == 0
    assert held == list(blocks.blocks)
    list(forward.logits())
    assert num_parameters(blocks.model) == 0


def peak_growth(num_blocks: int) -> int:
    """Bytes above the start that a pass over blocks of 1 MiB takes at its peak."""
    blocks = BlockModel(Stack(num_blocks, width=512))
    for path, array in tree_flatten(blocks.model.parameters()):
        blocks.install({path: mx.zeros_like(array)})

    def load() -> Weights:
        """Lazy, as from a file: no memory is used before evaluation."""
        fresh = Stack(num_blocks, width=512)
        return dict(tree_flatten(fresh.parameters()))

    forward = Forward(blocks, BlockWeights(blocks, load), [tokens_from(0)])
    mx.clear_cache()
    start = mx.get_active_memory()
    mx.reset_peak_memory()
    for logits in forward.run():
        mx.eval(logits)
    return mx.get_peak_memory() - start


def test_memory_does_not_grow_with_depth():
    shallow, deep = peak_growth(2), peak_growth(24)
    assert deep < shallow + (1 << 20)
    assert deep < 6 << 20  # of 24 MiB of weights


@pytest.mark.parametrize("size", [1 << 20, 1 << 22], ids=["small", "large"])
def test_observed_sums_are_evaluated_before_more_batches_run(tied, size):
    """Two batches at a time on a CPU, so twice a block for three, and once each at the head."""
    blocks, made = tied.blocks(), list[mx.array]()
    forward = Forward(blocks, tied.streamed(blocks), make_batches(3))
    gc.collect()
    before = mx.get_active_memory()

    def evaluated_bytes() -> float:
        return mx.get_active_memory() - before

    def observe() -> list[mx.array]:
        assert evaluated_bytes() > 0.9 * sum(array.nbytes for array in made)
        made.append(mx.ones(size))
        return made[-1:]

    while forward.next_block is not None:
        forward.step(observe)
    assert len(made) == 2 * len(blocks.blocks) + 3


def test_forwards_over_one_skeleton_keep_their_weights_apart(tied):
    other, batches, blocks = tied.noisy(0.1), make_batches(), tied.blocks()
    forwards = {
        "a": Forward(blocks, tied.streamed(blocks), batches),
        "b": Forward(blocks, other.streamed(blocks), batches),
        "c": Forward(blocks, tied.streamed(blocks), batches),
    }
    while forwards["a"].next_block is not None:
        for forward in forwards.values():
            forward.step()
    streams = {name: list(forward.logits()) for name, forward in forwards.items()}
    for i, batch in enumerate(batches):
        assert close(streams["a"][i], tied.plain(batch))
        assert close(streams["b"][i], other.plain(batch))
        assert mx.array_equal(streams["a"][i], streams["c"][i]).item()
        assert not close(streams["a"][i], streams["b"][i], 1e-2)


def test_weights_can_be_transformed_as_they_are_read(tied):
    def change(weights: Weights) -> Weights:
        return {path: 2 * array if "q_proj" in path else array for path, array in weights.items()}

    blocks, batches = tied.blocks(), make_batches()
    forward = Forward(blocks, BlockWeights(blocks, tied.load, change), batches)
    doubled = tied.with_weights(lambda path, array: 2 * array if "q_proj" in path else array)
    for batch, logits in zip(batches, forward.run(), strict=True):
        assert close(logits, doubled.plain(batch))


def test_the_way_back_to_the_stored_dtype_is_exact():
    weights = {"layers.0.proj.weight": mx.random.normal((32, 32)).astype(mx.bfloat16)}
    blocks = BlockModel(Stack(1))
    held = BlockWeights(blocks, lambda: dict(weights))
    with held.holding("layers.0") as computed:
        assert computed["layers.0.proj.weight"].dtype == mx.float32
        stored = held.as_stored(computed)
        assert not computed  # each is freed as it is cast
        assert not blocks.model.layers[0].proj.weight.size
    assert stored["layers.0.proj.weight"].dtype == mx.bfloat16
    (path,) = weights
    assert mx.array_equal(stored[path], weights[path]).item()


class BrokenBlockError(Exception):
    pass


def broken() -> None:
    raise BrokenBlockError


def test_an_error_inside_a_block_comes_out_and_leaves_nothing_behind():
    tiny, batches = tiny_of(Stack(3)), [tokens_from(0), tokens_from(1)]
    blocks = tiny.blocks()
    second = blocks.blocks["layers.1"]
    forward = Forward(blocks, tiny.streamed(blocks), batches)
    forward.step()
    second._before = broken
    with pytest.raises(BrokenBlockError):
        forward.step()
    assert blocks.interceptor is None
    assert num_parameters(blocks.model) == 0
    suspended = [weakref.ref(each) for each in forward._greenlets]
    del forward
    gc.collect()
    assert [each() for each in suspended] == [None, None]
    second._before = lambda: None
    for batch, logits in zip(
        batches, Forward(blocks, tiny.streamed(blocks), batches).run(), strict=True
    ):
        assert close(logits, tiny.plain(batch))


def test_an_error_while_the_weights_are_held_frees_them(tied):
    blocks = tied.blocks()
    forward = Forward(blocks, tied.streamed(blocks), make_batches())

    def refuse(path: str, weights: Weights) -> None:
        raise BrokenBlockError

    with pytest.raises(BrokenBlockError):
        forward.step(while_held=refuse)
    assert num_parameters(blocks.model) == 0


def test_an_error_between_the_blocks_comes_out():
    class Broken(Stack):
        def order(self, tokens: mx.array) -> list[Block]:
            raise BrokenBlockError

    tiny = tiny_of(Broken(1))
    blocks = tiny.blocks()
    with pytest.raises(BrokenBlockError):
        list(Forward(blocks, tiny.streamed(blocks), [tokens_from(0)]).run())
    assert blocks.interceptor is None


def test_weights_that_cannot_be_read_leave_nothing_behind(tied):
    blocks = tied.blocks()

    def change(weights: Weights) -> Weights:
        singular = mx.linalg.inv(mx.zeros((4, 4)), stream=mx.cpu)  # fails when it is evaluated
        return weights | {"model.layers.0.mlp.up_proj.weight": singular}

    forward = Forward(blocks, BlockWeights(blocks, tied.load, change), make_batches())
    with pytest.raises(RuntimeError):
        forward.step()
    assert num_parameters(blocks.model) == 0


def test_batches_that_take_different_ways_are_refused():
    tiny = tiny_of(Fickle(2))
    blocks = tiny.blocks()
    forward = Forward(blocks, tiny.streamed(blocks), [tokens_from(0), tokens_from(1)])
    with pytest.raises(RuntimeError, match="different orders"):
        list(forward.run())


def test_a_model_without_layers_is_one_block():
    blocks = BlockModel(nn.Linear(8, 8))
    assert blocks.is_whole
    assert blocks.block_of("weight") == ""


def test_a_model_that_drives_the_parts_of_its_blocks_itself_can_run_as_a_whole():
    tiny, batches = make_model("iquestloopcoder"), make_batches(2, shape=(2, 12))
    blocks = tiny.blocks()
    with pytest.raises(ValueError, match="weight"):  # they are empty, and never installed
        list(Forward(blocks, tiny.streamed(blocks), batches).run())
    assert num_parameters(blocks.model) == 0
    whole = blocks.treat_as_whole()
    assert whole.is_whole
    forward = Forward(whole, tiny.streamed(whole), batches)
    assert forward.next_block == ""
    for batch, logits in zip(batches, forward.run(), strict=True):
        assert close(logits, tiny.plain(batch))
    assert num_parameters(whole.model) == 0


def test_a_survey_counts_the_calls_of_each_block_without_reading_anything(tied):
    blocks = tied.blocks()
    start = mx.get_active_memory()
    assert blocks.survey(tied.load())
    assert mx.get_active_memory() - start < 1 << 16
    assert blocks.num_calls == dict.fromkeys(blocks.blocks, 1)
    assert num_parameters(blocks.model) == 0
    looped = make_model("nanbeige")
    again = looped.blocks()
    assert again.survey(looped.load())
    assert set(again.num_calls.values()) == {2}


def test_a_survey_finds_models_that_drive_the_parts_of_their_blocks_themselves():
    tiny = make_model("iquestloopcoder")
    blocks = tiny.blocks()
    assert not blocks.survey(tiny.load())
    assert num_parameters(blocks.model) == 0


def test_a_parameter_belongs_to_the_block_that_its_path_lies_in(tied):
    blocks = tied.blocks()
    assert blocks.block_of("model.layers.1.mlp.up_proj.weight") == "model.layers.1"
    assert blocks.block_of("model.layers.1") == "model.layers.1"
    assert blocks.block_of("model.layers.10.mlp") is None
    assert blocks.block_of("model.embed_tokens.weight") is None
    outer, inner = blocks.split(tied.load())
    assert set(outer) == {"model.embed_tokens.weight", "model.norm.weight"}
    assert sum(map(len, inner.values())) + len(outer) == len(tied.weights)


def test_a_block_called_outside_a_pass_runs_as_ever(tied):
    blocks = tied.blocks()
    blocks.install(tied.load())
    (batch,) = make_batches(1)
    assert close(blocks.model(batch), tied.plain(batch))
