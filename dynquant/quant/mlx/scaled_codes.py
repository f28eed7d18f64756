"""Weights that are stored as codes of eight bits with a scale for each tensor, row or block.

They are multiplied out before the model's class sees them: some classes of mlx-lm take the bytes
of float8 for integers. Layout as in DeepSeek-V3 (`weight_scale_inv`, blocks of 128 × 128), in
compressed-tensors and in FBGEMM (`weight_scale`, a tensor or a row); either name multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from dynquant.errors import Reason, UnsupportedModelError
from dynquant.model.quantized_sources import Tensor, scale_names
from dynquant.quant.mlx.stock import Weights

__all__ = ["ScaledCodes"]

_READ = ("F8_E4M3", "I8")
_BLOCK = 128
_EXPONENT_BIAS = 127  # of E8M0, a power of two


@dataclass(frozen=True)
class ScaledCodes:
    """The weights of a source that are codes with scales.

    Attributes:
        scales: Name of a weight → name of its scales.
        tensors: Name → dtype and shape of each of both.
        block: Sizes of a block as the config says; empty where it does not.
    """

    scales: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    block: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> ScaledCodes:
        """Find them by dtypes and names.

        Raises:
            UnsupportedModelError: A weight of codes has no scales, or ones of no known layout.
        """
        scales = {}
        for name, tensor in tensors.items():
            if tensor.dtype in _READ and len(tensor.shape) > 1:
                found = next((each for each in scale_names(name) if each in tensors), None)
                if found is None and tensor.dtype == "F8_E4M3":
                    raise UnsupportedModelError(
                        f"The weight '{name[:100]}' is stored as {tensor.dtype} and no scale is "
                        "beside it, so its numbers are unknown. Use the original.",
                        reason=Reason.ALREADY_QUANTIZED,
                    )
                if found is not None:
                    scales[name] = found
        settings = config.get("quantization_config")
        block = settings.get("weight_block_size") if isinstance(settings, Mapping) else None
        sizes = tuple(block) if isinstance(block, list | tuple) else ()
        codes = cls(scales, tensors, sizes if all(isinstance(s, int) for s in sizes) else ())
        for name in scales:
            codes._blocks(name)
        return codes

    def decoded(self, weights: Weights) -> Weights:
        """`weights` with numbers in place of codes and scales, not yet evaluated."""
        used = set(self.scales.values())
        return {
            name: self._decoded(name, array, weights) if name in self.scales else array
            for name, array in weights.items()
            if name not in used
        }

    def _decoded(self, name: str, codes: mx.array, weights: Weights) -> mx.array:
        scales = weights[self.scales[name]]
        if self.tensors[self.scales[name]].dtype in {"F8_E8M0", "U8"}:
            scales = mx.power(2.0, scales.astype(mx.float32) - _EXPONENT_BIAS)
        scales = scales.astype(mx.float32).reshape(self._scale_shape(name))
        for axis, size in enumerate(self._blocks(name)):
            if scales.shape[axis] > 1:
                scales = mx.repeat(scales, size, axis=axis)
        scales = scales[tuple(slice(size) for size in codes.shape)]
        is_float8 = self.tensors[name].dtype == "F8_E4M3"
        plain = mx.from_fp8(codes, mx.float32) if is_float8 else codes.astype(mx.float32)
        return (plain * scales).astype(mx.bfloat16)

    def _scale_shape(self, name: str) -> tuple[int, ...]:
        """Shape of the scales with as many axes as the weight has."""
        shape, given = self.tensors[name].shape, self.tensors[self.scales[name]].shape
        if len(given) == len(shape):
            return given
        if len(given) == 1 and given[0] == shape[-2]:
            return (*(1 for _ in shape[:-2]), given[0], 1)  # one for each row
        return (*given, *(1 for _ in shape[len(given) :]))

    def _blocks(self, name: str) -> tuple[int, ...]:
        """How many weights along each axis share a scale.

        Raises:
            UnsupportedModelError: It cannot be told.
        """
        shape, scales = self.tensors[name].shape, self._scale_shape(name)
        sizes = []
        said = (None,) * (len(shape) - len(self.block)) + self.block
        for size, count, own in zip(shape, scales, said, strict=False):
            wanted = (size, own, _BLOCK, size // max(count, 1))
            fitting = (each for each in wanted if each and -(-size // each) == count)
            sizes.append(next(fitting, 0))
        if len(scales) != len(shape) or not all(sizes):
            raise UnsupportedModelError(
                f"The scales of the weight '{name[:100]}' have the shape {list(scales)}, which "
                f"does not go with its own {list(shape)}. Use the original.",
                reason=Reason.ALREADY_QUANTIZED,
            )
        return tuple(sizes)
