"""Encode layers by `gptq`, `wls` or `minmax`, from the second moments of their inputs.

`minmax` is `mx.quantize`; `wls` fits each group's scale and bias by least squares, weighted by
the diagonal of H and the Fisher information of the outputs (`encoding`); `gptq` adds GPTQ and
coordinate descent with the whole H (`gptq`). Both leave weights as they are that lie on the grid of
the format already (`grids`). An embedding that is the head too goes by `tied_embedding`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.arrays import Weights, check_finite
from dynquant.quant.mlx.encoding import Encoded, decode, encode, encode_min_max
from dynquant.quant.mlx.gptq import encode_batch, encode_gptq
from dynquant.quant.mlx.grids import on_grid
from dynquant.quant.mlx.hessians import HessianObserver, InputHessian, takes_gptq
from dynquant.quant.mlx.importance import Importance, Term
from dynquant.quant.mlx.inverse_hessian import InverseHessian
from dynquant.quant.mlx.observing import Role
from dynquant.quant.mlx.tied_embedding import encode_tied

__all__ = ["LayerEncoder", "formats_by_path", "stored_by"]

_TIED_ROLES = {Role.LINEAR, Role.LOOKUP}
_FACTORS_BYTES = 1 << 29  # of factorizations kept for the next layer with the same input


@dataclass
class LayerEncoder:
    """Encodes layers from the second moments of their inputs.

    Attributes:
        name: One of `recipe.ENCODERS`.
        hessians: Second moments of the inputs; whole Gram matrices for `gptq`.
        importance: Path → importance of the layers for which H alone does not give it.
        num_sweeps: How often `gptq` goes over a layer again.
    """

    name: str
    hessians: HessianObserver
    importance: Mapping[str, Importance] = field(default_factory=dict)
    num_sweeps: int = 0
    _encoded: dict[tuple[str, QuantFormat], Encoded] = field(default_factory=dict)
    _factored: dict[tuple[int, int], tuple[InputHessian, InverseHessian]] = field(
        default_factory=dict
    )

    def encode(self, path: str, weight: mx.array, fmt: QuantFormat) -> Encoded:
        """Store the weight of the layer at `path` as `fmt`; the result is kept until `leave`.

        Raises:
            NonFiniteError: The weight holds NaN or infinity.
        """
        if self.name == "minmax":
            return self._encode(path, weight, fmt)  # as cheap as keeping the result
        if (path, fmt) not in self._encoded:
            self._encoded[path, fmt] = self._encode(path, weight, fmt)
            mx.eval(list(self._encoded[path, fmt].arrays.values()))
        return self._encoded[path, fmt]

    def encode_ahead(
        self,
        weights: Weights,
        wanted: Mapping[str, Collection[QuantFormat]],
        on_layer: Callable[[str, mx.array], None] = lambda _path, _weight: None,
    ) -> None:
        """Encode layers that share inputs and group size together; `encode` returns the results.

        Gram matrices and weights are freed as soon as they are used; the widest layers come last.

        Args:
            weights: Parameter path → weight as stored, also of other parameters. The weights of
                layers that are encoded in all their formats are removed.
            wanted: Path → all formats that `encode` will be asked for.
            on_layer: Called with the path and the weight of each layer that is removed.

        Raises:
            NonFiniteError: A weight holds NaN or infinity.
        """
        if self.name != "gptq":
            return
        sharing = defaultdict[tuple[int, int, mx.Dtype], list[tuple[str, QuantFormat]]](list)
        left = self._keep_exact(weights, wanted, on_layer)
        for path, formats in left.items():
            weight = weights.get(f"{path}.weight")
            if weight is None or not takes_gptq(self.hessians, path):
                continue
            for fmt in formats:
                if fmt.mode == "affine":
                    key = (id(self._hessian(path)), fmt.group_size, weight.dtype)
                    sharing[key].append((path, fmt))
        coming = sorted(sharing, key=lambda key: weights[f"{sharing[key][0][0]}.weight"].shape[-1])
        while coming:
            inputs, group_size, _ = key = coming.pop(0)
            members = sorted(sharing[key], key=lambda member: (member[1].bits, member[0]))
            parts = [(weights[f"{path}.weight"], fmt) for path, fmt in members]
            check_finite({f"{path}.weight": weights[f"{path}.weight"] for path, _ in members})
            inverse_hessian = self._inverse_hessian(members[0][0], group_size)
            if all(other != inputs for other, *_ in coming):
                self.hessians.drop_grams({path for path, _ in members})
                self._factored.clear()
            encoded = encode_batch(parts, inverse_hessian, num_sweeps=self.num_sweeps)
            self._encoded.update(zip(members, encoded, strict=True))
            for path, fmt in members:
                left[path].discard(fmt)
                if not left[path]:
                    on_layer(path, weights.pop(f"{path}.weight"))

    def _keep_exact(
        self,
        weights: Weights,
        wanted: Mapping[str, Collection[QuantFormat]],
        on_layer: Callable[[str, mx.array], None],
    ) -> dict[str, set[QuantFormat]]:
        """Encode what is on the grid of a format; path → the formats that are left.

        Arguments as `encode_ahead`.
        """
        left = {path: set(formats) for path, formats in wanted.items()}
        for path, formats in wanted.items():
            name = f"{path}.weight"
            if name in weights and takes_gptq(self.hessians, path):
                found = {fmt: on_grid(weights[name], fmt) for fmt in formats}
                exact = {fmt: each for fmt, each in found.items() if each is not None}
                self._encoded |= {(path, fmt): each for fmt, each in exact.items()}
                left[path] -= exact.keys()
                if exact and not left[path]:
                    on_layer(path, weights.pop(name))
        return left

    def _encode(self, path: str, weight: mx.array, fmt: QuantFormat) -> Encoded:
        check_finite({f"{path}.weight": weight})
        if fmt == UNQUANTIZED:
            return Encoded({"weight": weight}, fmt)
        if self.name != "minmax" and (exact := on_grid(weight, fmt)) is not None:
            return exact
        if self.name == "minmax" or fmt.mode != "affine":
            return encode_min_max(weight, fmt)
        if self.name == "gptq" and takes_gptq(self.hessians, path):
            inverse_hessian = self._inverse_hessian(path, fmt.group_size)
            return encode_gptq(weight, inverse_hessian, fmt, num_sweeps=self.num_sweeps)
        if self.name == "gptq" and (hessian := self._head_hessian(path)) is not None:
            head, table = self.importance[path].terms
            return encode_tied(weight, head, table, hessian, fmt, num_sweeps=self.num_sweeps)
        return encode(weight, self._importance(path, weight).of_rows, fmt)

    def _head_hessian(self, path: str) -> mx.array | None:
        """Mean H of the inputs of an output head that is the embedding too."""
        head = self.hessians.of(path, Role.LINEAR)
        known = path in self.importance and len(self.importance[path].terms) == len(_TIED_ROLES)
        roles = {role for role in Role if self.hessians.of(path, role)}
        if not known or roles != _TIED_ROLES or head is None:
            return None
        hessian = head.matrix
        return None if hessian is None else hessian / mx.maximum(head.num_vectors, 1.0)

    def leave(self, paths: Collection[str]) -> None:
        """Free Gram matrices, factors and results of the layers at `paths`."""
        self.hessians.drop_grams(paths)
        self._factored.clear()
        for key in [key for key in self._encoded if key[0] in paths]:
            del self._encoded[key]

    def _inverse_hessian(self, path: str, group_size: int) -> InverseHessian:
        """Order and factor of a layer's H, made once for all layers that share it."""
        hessian = self._hessian(path)
        key = (id(hessian), group_size)
        if key not in self._factored:
            inverse_hessian = InverseHessian.of(
                self.hessians.matrix(path, self._role(path)), group_size
            )
            inverse_hessian = (
                inverse_hessian if self.num_sweeps else inverse_hessian.without_hessian()
            )
            kept = sum(each.nbytes for _, each in self._factored.values())
            while self._factored and kept + inverse_hessian.nbytes > _FACTORS_BYTES:
                kept -= self._factored.pop(next(iter(self._factored)))[1].nbytes
            self._factored[key] = hessian, inverse_hessian  # `hessian` keeps the id taken
        return self._factored[key][1]

    def _role(self, path: str) -> Role:
        """The one role of a layer that `takes_gptq`."""
        return next(role for role in Role if self.hessians.of(path, role))

    def _hessian(self, path: str) -> InputHessian:
        hessian = self.hessians.of(path, self._role(path))
        assert hessian is not None
        return hessian

    def _importance(self, path: str, weight: mx.array) -> Importance:
        if path in self.importance:
            return self.importance[path]
        for role in (Role.LINEAR, Role.SWITCH, Role.HEADS):
            if hessian := self.hessians.of(path, role):
                return Importance((Term(mx.ones(weight.shape[:-1]), hessian.smoothed().inputs),))
        return Importance(())


def formats_by_path(
    plans: Iterable[Mapping[str, QuantFormat]],
) -> dict[str, set[QuantFormat]]:
    """Path → all formats that `plans` (path → format) have for it."""
    found = defaultdict[str, set[QuantFormat]](set)
    for plan in plans:
        for path, fmt in plan.items():
            found[path].add(fmt)
    return dict(found)


def stored_by(
    encoder: LayerEncoder, formats: Mapping[str, QuantFormat], dtypes: Mapping[str, mx.Dtype]
) -> Callable[[Weights], Weights]:
    """A function for `BlockWeights` that replaces weights by their decoded form in `formats`.

    Args:
        encoder: Encodes the weights.
        formats: Path → format.
        dtypes: Parameter path → dtype that it is stored in.
    """

    def quantized(weights: Weights) -> Weights:
        found = dict(weights)
        for path, fmt in formats.items():
            name = f"{path}.weight"
            if name in weights:
                encoded = encoder.encode(path, weights[name].astype(dtypes[name]), fmt)
                found[name] = decode(encoded, weights[name].dtype)
        return found

    return quantized
