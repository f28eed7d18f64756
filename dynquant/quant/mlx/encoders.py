"""The encoders by name, each applied to one layer with what is known about its inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from dynquant.errors import InvalidOptionError
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.encoding import Encoded, decode, encode, encode_min_max
from dynquant.quant.mlx.gptq import encode_batch, encode_with_feedback
from dynquant.quant.mlx.hessians import HessianObserver, InputHessian, takes_feedback
from dynquant.quant.mlx.importance import Importance, Term
from dynquant.quant.mlx.inverse_hessian import InverseHessian
from dynquant.quant.mlx.loading import Weights, check_finite
from dynquant.quant.mlx.observing import Role
from dynquant.quant.mlx.tied_embedding import encode_tied

__all__ = ["ENCODERS", "LayerEncoder", "check_encoder", "formats_by_path", "stored_by"]

_TIED_ROLES = {Role.LINEAR, Role.LOOKUP}
_FACTORS_BYTES = 1 << 29  # of factorizations kept for the next layer with the same input

ENCODERS = {
    "gptq": "weighted least squares with GPTQ error feedback",
    "wls": "scales and biases by weighted least squares",
    "minmax": "scales and biases from minimum and maximum, as mx.quantize",
}


def check_encoder(name: str) -> str:
    """`name`, if there is such an encoder.

    Raises:
        InvalidOptionError: There is none.
    """
    if name not in ENCODERS:
        raise InvalidOptionError(
            f"There is no encoder '{name}'. Choose one of {', '.join(ENCODERS)}."
        )
    return name


@dataclass
class LayerEncoder:
    """Encodes layers from the second moments of their inputs.

    Attributes:
        name: A key of `ENCODERS`.
        moments: Second moments of the inputs; covariances for `gptq`.
        importance: Path → importance of the layers where inputs alone do not tell it.
        num_sweeps: How often `gptq` goes over a layer again.
    """

    name: str
    moments: HessianObserver
    importance: Mapping[str, Importance] = field(default_factory=dict)
    num_sweeps: int = 0
    _encoded: dict[tuple[str, QuantFormat], Encoded] = field(default_factory=dict)
    _factored: dict[tuple[int, int], tuple[InputHessian, InverseHessian]] = field(
        default_factory=dict
    )

    def encode(self, path: str, weight: mx.array, fmt: QuantFormat) -> Encoded:
        """Store the weight of the layer at `path` as `fmt`; once, until it is left.

        Raises:
            NonFiniteError: The weight holds NaN or infinity.
        """
        if self.name == "minmax":
            return self._encode(path, weight, fmt)  # as cheap as remembering
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
        """Encode together what shares inputs and a group size, for `encode` to find.

        Covariances and weights go as soon as nothing here needs them, so the widest come last.

        Args:
            weights: Parameter path → weight as stored; others than layers' may be among them.
                The layers that are encoded in all their formats are taken out.
            wanted: Path → all formats that `encode` will be asked for.
            on_layer: Called with the path and the weight of each layer that is taken out.

        Raises:
            NonFiniteError: A weight holds NaN or infinity.
        """
        if self.name != "gptq":
            return
        sharing = defaultdict[tuple[int, int, mx.Dtype], list[tuple[str, QuantFormat]]](list)
        for path, formats in wanted.items():
            weight = weights.get(f"{path}.weight")
            if weight is None or not takes_feedback(self.moments, path):
                continue
            for fmt in formats:
                if fmt.mode == "affine":
                    key = (id(self._moments(path)), fmt.group_size, weight.dtype)
                    sharing[key].append((path, fmt))
        left = {path: set(formats) for path, formats in wanted.items()}
        coming = sorted(sharing, key=lambda key: weights[f"{sharing[key][0][0]}.weight"].shape[-1])
        while coming:
            inputs, group_size, _ = key = coming.pop(0)
            members = sorted(sharing[key], key=lambda member: (member[1].bits, member[0]))
            parts = [(weights[f"{path}.weight"], fmt) for path, fmt in members]
            check_finite({f"{path}.weight": weights[f"{path}.weight"] for path, _ in members})
            feedback = self._feedback(members[0][0], group_size)
            if all(other != inputs for other, *_ in coming):
                self.moments.drop_covariances({path for path, _ in members})
                self._factored.clear()
            encoded = encode_batch(parts, feedback, num_sweeps=self.num_sweeps)
            self._encoded.update(zip(members, encoded, strict=True))
            for path, fmt in members:
                left[path].discard(fmt)
                if not left[path]:
                    on_layer(path, weights.pop(f"{path}.weight"))

    def _encode(self, path: str, weight: mx.array, fmt: QuantFormat) -> Encoded:
        check_finite({f"{path}.weight": weight})
        if fmt == UNQUANTIZED:
            return Encoded({"weight": weight}, fmt)
        if self.name == "minmax" or fmt.mode != "affine":
            return encode_min_max(weight, fmt)
        if self.name == "gptq" and takes_feedback(self.moments, path):
            feedback = self._feedback(path, fmt.group_size)
            return encode_with_feedback(weight, feedback, fmt, num_sweeps=self.num_sweeps)
        if self.name == "gptq" and (covariance := self._head_covariance(path)) is not None:
            head, table = self.importance[path].terms
            return encode_tied(weight, head, table, covariance, fmt, num_sweeps=self.num_sweeps)
        return encode(weight, self._importance(path, weight).of_rows, fmt)

    def _head_covariance(self, path: str) -> mx.array | None:
        """Mean products of the inputs of an output head that is the embedding too."""
        head = self.moments.of(path, Role.LINEAR)
        known = path in self.importance and len(self.importance[path].terms) == len(_TIED_ROLES)
        roles = {role for role in Role if self.moments.of(path, role)}
        if not known or roles != _TIED_ROLES or head is None:
            return None
        covariance = head.covariance
        return None if covariance is None else covariance / mx.maximum(head.num_vectors, 1.0)

    def leave(self, paths: Collection[str]) -> None:
        """Let go what only the layers at `paths` needed, once they are done."""
        self.moments.drop_covariances(paths)
        self._factored.clear()
        for key in [key for key in self._encoded if key[0] in paths]:
            del self._encoded[key]

    def _feedback(self, path: str, group_size: int) -> InverseHessian:
        """The factored covariance of a layer's inputs, made once for all that share them."""
        moments = self._moments(path)
        key = (id(moments), group_size)
        if key not in self._factored:
            feedback = InverseHessian.of(
                self.moments.covariance(path, self._role(path)), group_size
            )
            feedback = feedback if self.num_sweeps else feedback.without_covariance()
            kept = sum(each.nbytes for _, each in self._factored.values())
            while self._factored and kept + feedback.nbytes > _FACTORS_BYTES:
                kept -= self._factored.pop(next(iter(self._factored)))[1].nbytes
            self._factored[key] = moments, feedback  # `moments` keeps the id taken
        return self._factored[key][1]

    def _role(self, path: str) -> Role:
        """The one role of a layer that `takes_feedback`."""
        return next(role for role in Role if self.moments.of(path, role))

    def _moments(self, path: str) -> InputHessian:
        moments = self.moments.of(path, self._role(path))
        assert moments is not None
        return moments

    def _importance(self, path: str, weight: mx.array) -> Importance:
        if path in self.importance:
            return self.importance[path]
        for role in (Role.LINEAR, Role.SWITCH, Role.HEADS):
            if moments := self.moments.of(path, role):
                return Importance((Term(mx.ones(weight.shape[:-1]), moments.smoothed().inputs),))
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
    """Replaces weights by what they are once stored in `formats`, for `BlockWeights(amend=…)`.

    Args:
        encoder: What stores them.
        formats: Path → format.
        dtypes: Parameter path → dtype that it is stored in.
    """

    def amend(weights: Weights) -> Weights:
        amended = dict(weights)
        for path, fmt in formats.items():
            name = f"{path}.weight"
            if name in weights:
                encoded = encoder.encode(path, weights[name].astype(dtypes[name]), fmt)
                amended[name] = decode(encoded, weights[name].dtype)
        return amended

    return amend
