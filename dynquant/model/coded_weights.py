"""A weight that is stored as codes with scales, and the tensors that it consists of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from dynquant.model.quantized_sources import Tensor

__all__ = ["CodedWeight", "Coding", "described", "is_activation_scale", "uncoded"]

_MAX_FORMS = 8  # in a sentence
_ACTIVATION_SCALE = re.compile(
    r"\.(input_scale|input_global_scale|input_zero_point|activation_scale|output_scale"
    r"|output_zero_point|[kvq]_scale|[kvq]_zero_point)$"
)


class Coding(StrEnum):
    """The number that a code is, before its scale."""

    FLOAT8 = "float8"
    INT8 = "int8"
    FLOAT4 = "float4"
    PACKED_INT = "packed int"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedWeight:
    """A weight and the tensors that it is stored as.

    Attributes:
        name: Its name once it is dequantized, as in a model that was never quantized.
        shape: (..., out, in).
        dtype: Of the dequantized weight, as a safetensors header names it.
        coding: Meaning of a code.
        bits: Width of a code.
        codes: Name of the tensor of codes.
        scales: Name of the tensor of scales.
        scale_shape: Of the scales, with as many axes as the weight has.
        blocks: How many weights along each axis share a scale.
        are_powers: Whether the scales are exponents of two.
        global_scale: Name of the scale of the scales; empty without one.
        divides: Whether the scales are divided by it.
        zeros: Name of the zero points, in the codes' units; empty for a symmetric grid.
        group_of: Name of the tensor that gives each column its group; empty if groups are runs.
        others: Names of tensors that only describe these.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    coding: Coding
    bits: int
    codes: str
    scales: str
    scale_shape: tuple[int, ...]
    blocks: tuple[int, ...]
    are_powers: bool = False
    global_scale: str = ""
    divides: bool = False
    zeros: str = ""
    group_of: str = ""
    others: tuple[str, ...] = ()

    @property
    def stored(self) -> tuple[str, ...]:
        """Names of all its tensors."""
        named = (self.codes, self.scales, self.global_scale, self.zeros, self.group_of)
        return (*filter(None, named), *self.others)

    @property
    def form(self) -> str:
        """The form in words: `float8 with a scale for each block of 128 × 128 weights`."""
        rows, columns = self.blocks[-2:]
        if self.coding is Coding.FLOAT4:
            return "MXFP4" if self.are_powers else "NVFP4"
        if self.coding is Coding.FLOAT8 and self.are_powers and (rows, columns) == (1, 32):
            return "MXFP8"
        name = f"int{self.bits}" if self.coding is not Coding.FLOAT8 else "float8"
        if (rows, columns) == self.shape[-2:]:
            shared = "tensor"
        elif rows == 1:
            shared = "row" if columns == self.shape[-1] else f"group of {columns} weights"
        else:
            shared = f"block of {rows} × {columns} weights"
        return f"{name} with a scale for each {shared}"


def uncoded(tensors: Mapping[str, Tensor], coded: Mapping[str, CodedWeight]) -> dict[str, Tensor]:
    """The tensors of the same model, had its weights never been quantized."""
    used = {name for weight in coded.values() for name in weight.stored}
    plain = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in used and not (coded and is_activation_scale(name, tensor))
    }
    return plain | {name: Tensor(weight.dtype, weight.shape) for name, weight in coded.items()}


def described(coded: Mapping[str, CodedWeight]) -> str:
    """The forms of the weights in words, the most frequent first."""
    forms = Counter(weight.form for weight in coded.values())
    return " and ".join(form for form, _ in forms.most_common(_MAX_FORMS))


def is_activation_scale(name: str, tensor: Tensor) -> bool:
    """Whether a tensor only tells a runtime how to quantize activations or its cache."""
    # One number, or one for each expert or head.
    return _ACTIVATION_SCALE.search(name) is not None and prod(tensor.shape[1:]) == 1
