"""H = Σ x xᵀ of each layer's inputs x, or its diagonal, gathered while a model runs forward.

It is the Hessian of ½ Σ |(q - w) x|² in a row of a weight, hence the name. Layers that are given
the same array share one H: q, k and v do, and gate and up.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import mlx.core as mx
import numpy as np

from dynquant.quant.formats import AFFINE_GROUP_SIZES
from dynquant.quant.mlx.gram import GramMatrix
from dynquant.quant.mlx.observing import Observation, Role, squares

__all__ = [
    "HessianObserver",
    "InputHessian",
    "gram_bytes",
    "takes_gptq",
    "towards_mean_expert",
]

_PRIOR_TOKENS = 16.0  # weight of the mean expert, in tokens, beside an expert's own tokens
_MIN_GROUP_SIZE = min(AFFINE_GROUP_SIZES)
_MAX_GRAM_BYTES = 4 << 30  # of one layer; of a larger matrix only the diagonal is kept


@dataclass
class InputHessian:
    """Sums over all inputs of one layer in one role.

    Attributes:
        squares: Σ x² of the inputs, (*lead, in), float32; token counts for a lookup, (rows,). None
            where `gram` has them as its diagonal: separate sums would keep each batch's products.
        num_vectors: Number of inputs, (); per expert for a switch layer, (experts, 1).
        gram: XᵀX of the inputs, (*lead, in, in), float32, for layers that GPTQ may encode.
    """

    squares: mx.array | None
    num_vectors: mx.array
    gram: GramMatrix | None = None

    def arrays(self) -> list[mx.array]:
        """All sums, to be evaluated."""
        squares = [] if self.squares is None else [self.squares]
        gram = [] if self.gram is None else self.gram.arrays()
        return [*squares, self.num_vectors, *gram]

    @property
    def inputs(self) -> mx.array:
        """Σ x², (*lead, in), float32; token counts for a lookup, (rows,)."""
        if self.squares is not None:
            return self.squares
        assert self.gram is not None
        return self.gram.diagonal

    def drop_gram(self) -> None:
        """Free the Gram matrix; its diagonal stays."""
        self.squares, self.gram = self.inputs, None
        mx.eval(self.squares)

    @property
    def matrix(self) -> mx.array | None:
        """H as one matrix, (*lead, in, in), once all inputs are added up."""
        return None if self.gram is None else self.gram.whole()

    def smoothed(self) -> InputHessian:
        """For experts: sums shrunk towards the mean expert, so that unused experts count too."""
        if self.num_vectors.ndim == 0:
            return self
        total = mx.maximum(self.num_vectors.sum(), 1.0)

        def pulled(sums: mx.array) -> mx.array:
            return sums + _PRIOR_TOKENS * sums.sum(0) / total

        gram = None if self.gram is None else self.gram.mapped(pulled)
        return InputHessian(pulled(self.inputs), self.num_vectors, gram)

    def __add__(self, other: InputHessian) -> InputHessian:
        """Sums over both."""
        num_vectors = self.num_vectors + other.num_vectors
        if self.gram is not None and other.gram is not None:
            return InputHessian(None, num_vectors, self.gram + other.gram)
        return InputHessian(self.inputs + other.inputs, num_vectors)


class HessianObserver:
    """Adds up `InputHessian` per layer and role; layers that always share an input share its sums.

    Args:
        shapes: Path of each layer → shape of its weight, (*lead, out, in).
        gram: Whether to keep Gram matrices, not only squares.
        squares_only: Paths of layers of which only squares are kept even so.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        gram: bool,
        squares_only: Collection[str] = (),
    ) -> None:
        self._shapes = shapes
        self._with_gram = set(shapes) - set(squares_only) if gram else set()
        self._sums: dict[tuple[str, Role], InputHessian] = {}
        self._fresh: dict[Hashable, tuple[Observation, InputHessian]] = {}
        self._added: dict[tuple[int, int], tuple[InputHessian, InputHessian, InputHessian]] = {}
        self._touched: set[tuple[str, Role]] = set()
        self._paused = False

    def __call__(self, seen: Observation) -> mx.array:
        """Add the input; returns the output unchanged."""
        if self._paused:
            return seen.y
        key = (seen.path, seen.role)
        new = self._of_call(seen)
        old = self._sums.get(key)
        if old is None:
            self._sums[key] = new
        else:  # shared sums plus a shared input stay one object
            found = self._added.get((id(old), id(new)))
            _, _, self._sums[key] = found or (old, new, old + new)
            self._added[id(old), id(new)] = (old, new, self._sums[key])
        self._touched.add(key)
        return seen.y

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Calls in this context are not added."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def pending(self) -> list[mx.array]:
        """Sums that changed since the last call, for the caller to evaluate after each batch."""
        self._fresh.clear()
        self._added.clear()
        touched, self._touched = self._touched, set()
        sums = {id(self._sums[key]): self._sums[key] for key in touched}
        return [array for hessian in sums.values() for array in hessian.arrays()]

    def roles(self) -> list[tuple[str, Role]]:
        """Every layer seen, with its role."""
        return list(self._sums)

    def of(self, path: str, role: Role) -> InputHessian | None:
        """The sums of `path` in `role`; None if it never ran in that role."""
        return self._sums.get((path, role))

    def matrix(self, path: str, role: Role) -> mx.array:
        """H of a layer that `takes_gptq`."""
        hessian = self.of(path, role)
        assert hessian is not None
        matrix = hessian.smoothed().matrix
        assert matrix is not None
        return matrix

    def drop_grams(self, paths: Collection[str] | None = None) -> None:
        """Free Gram matrices: of the layers at `paths`, or all."""
        for (path, _), hessian in self._sums.items():
            if hessian.gram is not None and (paths is None or path in paths):
                hessian.drop_gram()

    def forget(self, paths: Collection[str]) -> None:
        """Free all sums of the layers at `paths`, so that another pass can gather them again."""
        for key in [key for key in self._sums if key[0] in paths]:
            del self._sums[key]

    def _of_call(self, seen: Observation) -> InputHessian:
        """Sums over one call; the same object for every layer that shares the input."""
        shape = self._shapes[seen.path]
        lead = tuple(shape[:-2])
        width = seen.x.shape[-1]
        gram = (
            seen.path in self._with_gram
            and seen.role not in (Role.TRANSPOSED, Role.LOOKUP)
            and gram_bytes((*lead, width)) > 0
        )
        num_rows = shape[0] if seen.role is Role.LOOKUP else 0
        key = (id(seen.x), id(seen.experts), seen.role, lead, gram, num_rows)
        if key not in self._fresh:
            if seen.role is Role.LOOKUP:
                ids = seen.x.reshape(-1)
                counts = mx.zeros(num_rows).at[ids].add(mx.ones(ids.shape))
                new = InputHessian(counts, mx.array(float(ids.size)))
            else:
                found = _gram(seen, lead) if gram else None
                alone = squares(seen.x, seen.role, seen.experts, lead) if found is None else None
                new = InputHessian(alone, _num_vectors(seen, lead), found)
            self._fresh[key] = seen, new  # holding `seen` keeps its ids from being reused
        return self._fresh[key][1]


def gram_bytes(inputs: Sequence[int]) -> int:
    """Size of the Gram matrix of inputs (*lead, in), float32; 0 where it is not kept.

    GPTQ encodes whole groups; a width that no group size divides has no format for it.
    """
    *lead, width = inputs
    size = 4 * prod(lead) * width**2
    return size if width % _MIN_GROUP_SIZE == 0 and size <= _MAX_GRAM_BYTES else 0


def towards_mean_expert(means: mx.array, counts: mx.array) -> mx.array:
    """Means per expert, (experts, n), of `counts` vectors each, shrunk towards the mean of all."""
    overall = (means * counts).sum(0) / mx.maximum(counts.sum(), 1.0)
    return (means * counts + _PRIOR_TOKENS * overall) / (counts + _PRIOR_TOKENS)


def takes_gptq(hessians: HessianObserver, path: str) -> bool:
    """Whether GPTQ can encode `path`: it has one role only, and its Gram matrix is at hand."""
    roles = [role for role in Role if hessians.of(path, role) is not None]
    hessian = hessians.of(path, roles[0]) if len(roles) == 1 else None
    return hessian is not None and hessian.gram is not None


def _num_vectors(seen: Observation, lead: tuple[int, ...]) -> mx.array:
    if seen.experts is not None:
        experts = seen.experts.reshape(-1)
        return mx.zeros((*lead, 1)).at[experts].add(mx.ones((experts.size, 1)))
    heads = seen.x.shape[-3] if seen.role in (Role.HEADS, Role.TRANSPOSED) else 1
    return mx.array(float(prod(seen.x.shape[:-1]) // heads))


def _gram(seen: Observation, lead: tuple[int, ...]) -> GramMatrix:
    x = seen.x.astype(mx.float32)
    width = x.shape[-1]
    if seen.experts is not None:
        rows = mx.broadcast_to(x.squeeze(-2), (*seen.experts.shape, width)).reshape(-1, width)
        experts = np.asarray(seen.experts).reshape(-1)
        chosen = [rows[mx.array(np.flatnonzero(experts == e))] for e in range(lead[0])]
        return GramMatrix.stacked([GramMatrix.of(part) for part in chosen])
    if seen.role is Role.HEADS:
        by_head = mx.moveaxis(x.reshape(-1, *x.shape[-3:]), 1, 0).reshape(x.shape[-3], -1, width)
        return GramMatrix.of(by_head).mapped(
            lambda panel: mx.broadcast_to(panel, (*lead, *panel.shape[-2:]))
        )
    return GramMatrix.of(x.reshape(-1, width))
