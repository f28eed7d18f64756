"""Second moments of what goes into each layer, gathered while a model runs forward."""

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
    "covariance_bytes",
    "takes_feedback",
    "towards_mean_expert",
]

_PRIOR_TOKENS = 16.0  # how many tokens the mean expert stands for, beside an expert's own
_MIN_GROUP_SIZE = min(AFFINE_GROUP_SIZES)
_MAX_COVARIANCE_BYTES = 4 << 30  # of one layer; a larger one keeps only its diagonal


@dataclass
class InputHessian:
    """Sums over everything that one layer was given in one role.

    Attributes:
        squares: Of the inputs, (*lead, in), float32; token counts for a lookup, (rows,). None
            where the products tell them: sums of their own would keep each batch's products.
        num_vectors: How many vectors went in, (); per expert for a switch layer, (experts, 1).
        products: Of the inputs, (*lead, in, in), float32, where asked for.
    """

    squares: mx.array | None
    num_vectors: mx.array
    products: GramMatrix | None = None

    def arrays(self) -> list[mx.array]:
        """All sums, to be evaluated."""
        squares = [] if self.squares is None else [self.squares]
        products = [] if self.products is None else self.products.arrays()
        return [*squares, self.num_vectors, *products]

    @property
    def inputs(self) -> mx.array:
        """Squares of the inputs, (*lead, in), float32; token counts for a lookup, (rows,)."""
        if self.squares is not None:
            return self.squares
        assert self.products is not None
        return self.products.diagonal

    def drop_products(self) -> None:
        """Let all but the squares go."""
        self.squares, self.products = self.inputs, None
        mx.eval(self.squares)

    @property
    def covariance(self) -> mx.array | None:
        """The products as one matrix, once all are added up."""
        return None if self.products is None else self.products.whole()

    def smoothed(self) -> InputHessian:
        """For experts: sums pulled towards the mean expert, so that none counts for nothing."""
        if self.num_vectors.ndim == 0:
            return self
        total = mx.maximum(self.num_vectors.sum(), 1.0)

        def pulled(sums: mx.array) -> mx.array:
            return sums + _PRIOR_TOKENS * sums.sum(0) / total

        products = None if self.products is None else self.products.mapped(pulled)
        return InputHessian(pulled(self.inputs), self.num_vectors, products)

    def __add__(self, other: InputHessian) -> InputHessian:
        """Sums over both."""
        num_vectors = self.num_vectors + other.num_vectors
        if self.products is not None and other.products is not None:
            return InputHessian(None, num_vectors, self.products + other.products)
        return InputHessian(self.inputs + other.inputs, num_vectors)


class HessianObserver:
    """Adds up `InputHessian` per layer and role; layers that always share an input share its sums.

    Args:
        shapes: Path of each layer → shape of its weight, (*lead, out, in).
        covariance: Whether to keep products of inputs too, not only squares.
        squares_only: Paths of layers to keep squares of all the same.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        *,
        covariance: bool,
        squares_only: Collection[str] = (),
    ) -> None:
        self._shapes = shapes
        self._with_products = set(shapes) - set(squares_only) if covariance else set()
        self._sums: dict[tuple[str, Role], InputHessian] = {}
        self._fresh: dict[Hashable, tuple[Observation, InputHessian]] = {}
        self._added: dict[tuple[int, int], tuple[InputHessian, InputHessian, InputHessian]] = {}
        self._touched: set[tuple[str, Role]] = set()
        self._paused = False

    def __call__(self, seen: Observation) -> mx.array:
        """Note the input; the output goes on as it is."""
        if self._paused:
            return seen.y
        key = (seen.path, seen.role)
        new = self._moments(seen)
        old = self._sums.get(key)
        if old is None:
            self._sums[key] = new
        else:  # equal sums plus an equal input stay one object
            found = self._added.get((id(old), id(new)))
            _, _, self._sums[key] = found or (old, new, old + new)
            self._added[id(old), id(new)] = (old, new, self._sums[key])
        self._touched.add(key)
        return seen.y

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs in this context does not count."""
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
        return [array for moments in sums.values() for array in moments.arrays()]

    def roles(self) -> list[tuple[str, Role]]:
        """Every layer seen, with its role."""
        return list(self._sums)

    def of(self, path: str, role: Role) -> InputHessian | None:
        """What `path` was given in `role`; None when it never ran so."""
        return self._sums.get((path, role))

    def covariance(self, path: str, role: Role) -> mx.array:
        """Products of the inputs of a layer that `takes_feedback`."""
        moments = self.of(path, role)
        assert moments is not None
        covariance = moments.smoothed().covariance
        assert covariance is not None
        return covariance

    def drop_covariances(self, paths: Collection[str] | None = None) -> None:
        """Let products of inputs go: of the layers at `paths`, or all."""
        for (path, _), moments in self._sums.items():
            if moments.products is not None and (paths is None or path in paths):
                moments.drop_products()

    def forget(self, paths: Collection[str]) -> None:
        """Let everything about `paths` go, so that another pass can gather it anew."""
        for key in [key for key in self._sums if key[0] in paths]:
            del self._sums[key]

    def _moments(self, seen: Observation) -> InputHessian:
        """Moments of one call; the same object for every layer that shares the input."""
        shape = self._shapes[seen.path]
        lead = tuple(shape[:-2])
        width = seen.x.shape[-1]
        products = (
            seen.path in self._with_products
            and seen.role not in (Role.TRANSPOSED, Role.LOOKUP)
            and covariance_bytes((*lead, width)) > 0
        )
        num_rows = shape[0] if seen.role is Role.LOOKUP else 0
        key = (id(seen.x), id(seen.experts), seen.role, lead, products, num_rows)
        if key not in self._fresh:
            if seen.role is Role.LOOKUP:
                ids = seen.x.reshape(-1)
                counts = mx.zeros(num_rows).at[ids].add(mx.ones(ids.shape))
                new = InputHessian(counts, mx.array(float(ids.size)))
            else:
                found = _products(seen, lead) if products else None
                alone = squares(seen.x, seen.role, seen.experts, lead) if found is None else None
                new = InputHessian(alone, _num_vectors(seen, lead), found)
            self._fresh[key] = seen, new  # `seen` keeps the ids taken
        return self._fresh[key][1]


def covariance_bytes(inputs: Sequence[int]) -> int:
    """What the products of inputs (*lead, in) take, float32; 0 where they are not kept.

    Feedback goes by whole groups; a width without them has no format to feed back in.
    """
    *lead, width = inputs
    size = 4 * prod(lead) * width**2
    return size if width % _MIN_GROUP_SIZE == 0 and size <= _MAX_COVARIANCE_BYTES else 0


def towards_mean_expert(means: mx.array, counts: mx.array) -> mx.array:
    """Means per expert, (experts, n), of `counts` vectors each, pulled towards the mean of all."""
    overall = (means * counts).sum(0) / mx.maximum(counts.sum(), 1.0)
    return (means * counts + _PRIOR_TOKENS * overall) / (counts + _PRIOR_TOKENS)


def takes_feedback(watcher: HessianObserver, path: str) -> bool:
    """Whether errors in `path` can be fed back: one role only, and its covariance is at hand."""
    roles = [role for role in Role if watcher.of(path, role) is not None]
    moments = watcher.of(path, roles[0]) if len(roles) == 1 else None
    return moments is not None and moments.products is not None


def _num_vectors(seen: Observation, lead: tuple[int, ...]) -> mx.array:
    if seen.experts is not None:
        experts = seen.experts.reshape(-1)
        return mx.zeros((*lead, 1)).at[experts].add(mx.ones((experts.size, 1)))
    heads = seen.x.shape[-3] if seen.role in (Role.HEADS, Role.TRANSPOSED) else 1
    return mx.array(float(prod(seen.x.shape[:-1]) // heads))


def _products(seen: Observation, lead: tuple[int, ...]) -> GramMatrix:
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
