"""The encoders by name, each applied to one layer with what is known about its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import mlx.core as mx

from dynquant.core.formats import UNQUANTIZED, QuantFormat
from dynquant.errors import InvalidOptionError
from dynquant.mlx_backend.encoding import Encoded, decode, encode, encode_min_max
from dynquant.mlx_backend.gptq import encode_with_feedback
from dynquant.mlx_backend.importance import Importance, Term
from dynquant.mlx_backend.loading import Weights, check_finite
from dynquant.mlx_backend.moments import MomentsObserver, takes_feedback
from dynquant.mlx_backend.observing import Role

__all__ = ["ENCODERS", "LayerEncoder", "check_encoder", "stored_by"]

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
    """

    name: str
    moments: MomentsObserver
    importance: Mapping[str, Importance] = field(default_factory=dict)

    def encode(self, path: str, weight: mx.array, fmt: QuantFormat) -> Encoded:
        """Store the weight of the layer at `path` as `fmt`.

        Raises:
            NonFiniteError: The weight holds NaN or infinity.
        """
        check_finite({f"{path}.weight": weight})
        if fmt == UNQUANTIZED:
            return Encoded({"weight": weight}, fmt)
        if self.name == "minmax" or fmt.mode != "affine":
            return encode_min_max(weight, fmt)
        if self.name == "gptq" and takes_feedback(self.moments, path):
            role = next(role for role in Role if self.moments.of(path, role))
            return encode_with_feedback(weight, self.moments.covariance(path, role), fmt)
        return encode(weight, self._importance(path, weight).of_rows, fmt)

    def _importance(self, path: str, weight: mx.array) -> Importance:
        if path in self.importance:
            return self.importance[path]
        for role in (Role.LINEAR, Role.SWITCH, Role.HEADS):
            if moments := self.moments.of(path, role):
                return Importance((Term(mx.ones(weight.shape[:-1]), moments.smoothed().inputs),))
        return Importance(())


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
                amended[name] = decode(encoded).astype(weights[name].dtype)
                mx.eval(amended[name])
        return amended

    return amend
