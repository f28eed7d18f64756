"""Weights of a source that are stored as codes with scales, found by the headers of its tensors.

A weight in low precision is several tensors: the codes, their scales, and what else a form needs.
`coded_weights` finds them by names, dtypes and shapes and refuses what does not fit together,
before any weight is read. `quant.mlx.coded_weights` computes the numbers. Layouts:

| form | codes | scales |
|---|---|---|
| float8, int8 | `weight` F8_E4M3, I8 | `weight_scale_inv`, `weight_scale` or `scale` |
| MXFP4 of gpt-oss | `*_blocks` U8, two codes a byte | `*_scales` U8, powers of two |
| NVFP4 of ModelOpt | `weight` U8 | `weight_scale` F8_E4M3 times `weight_scale_2` |
| compressed-tensors NVFP4, MXFP4 | `weight_packed` U8 | `weight_scale` / `weight_global_scale` |
| compressed-tensors int4, int8 | `weight_packed` I32 | `weight_scale`, `weight_zero_point` |

Sources: compressed-tensors (`compressors/`), transformers (`integrations/mxfp4.py`,
`integrations/finegrained_fp8.py`), NVIDIA ModelOpt (`NVFP4QTensor`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynquant.errors import Reason, UnsupportedModelError
from dynquant.model.coded_weights import CodedWeight, Coding
from dynquant.model.config import dtype_names
from dynquant.model.quantized_sources import Tensor, is_weight_name, quantization_settings

__all__ = ["coded_weights"]

_BLOCK = 128  # of float8 in blocks, where the config is silent
_FLOAT4_GROUPS = {"F8_E4M3": 16, "F8_E8M0": 32, "U8": 32}
"""Dtype of the scales → weights that share one."""
_PACKED_BITS = (2, 4, 8)
"""Widths that divide a word: others were packed in two ways over time."""
_MATRIX = 2  # axes
_MX_BYTES = 16  # of a group of 32 codes
_POWERS = ("F8_E8M0", "U8")
_HALVES = {"float16": "F16", "bfloat16": "BF16"}


def coded_weights(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[str, CodedWeight]:
    """Name of each weight that is stored as codes → how.

    Args:
        tensors: Name → dtype and shape of all that is stored.
        config: `config.json`.

    Raises:
        UnsupportedModelError: Codes have no scales, or ones of another shape; or the config names
            a transformation that only its own runtime undoes.
    """
    settings = quantization_settings(config)
    if settings.get("transform_config"):
        raise _refused(
            "The weights of this model are rotated ('transform_config' in its config), and only "
            "its own runtime undoes that."
        )
    finder = _Finder(tensors, settings, _half_named(config))
    return {weight.name: weight for weight in finder.found()}


@dataclass(frozen=True)
class _Finder:
    """Finds the coded weights of a source.

    Attributes:
        tensors: Name → dtype and shape.
        settings: `quantization_config`; empty without one.
        half: Dtype of the model as its config names it.
    """

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    half: str

    def found(self) -> Iterator[CodedWeight]:
        for name, tensor in self.tensors.items():
            if name.endswith(".bitmask"):
                raise _refused("The weights of this model are stored sparse, by bit masks.")
            if len(tensor.shape) < _MATRIX or not all(tensor.shape):
                continue
            if name.endswith("_packed"):
                yield self._packed(name, tensor)
            elif name.endswith("_blocks") and tensor.dtype == "U8" and len(tensor.shape) > _MATRIX:
                yield self._blocks_of_float4(name, tensor)
            elif tensor.dtype == "U8" and name + "_scale_2" in self.tensors:
                yield self._float4(name, name, tensor, name + "_scale_2", divides=False)
            elif tensor.dtype in ("F8_E4M3", "F8_E5M2", "I8"):
                found = self._bytes(name, tensor)
                if found is not None:
                    yield found

    def _bytes(self, name: str, tensor: Tensor) -> CodedWeight | None:
        """Codes of eight bits; None for other tensors of bytes, and for those of bitsandbytes."""
        if not is_weight_name(name) or name.endswith("codes"):  # those of AQLM
            return None
        if tensor.dtype == "F8_E5M2":
            raise _refused(
                f"The weight '{name[:100]}' is stored as F8_E5M2, which MLX cannot read."
            )
        scales = next((each for each in _scale_names(name) if each in self.tensors), None)
        if scales is None:
            if name.removesuffix("weight") + "SCB" in self.tensors:
                return None
            raise _refused(
                f"The weight '{name[:100]}' is stored as {tensor.dtype} and no scale is beside it, "
                "so its numbers are unknown."
            )
        scale = self.tensors[scales]
        # DeepSeek's 4-bit experts: two codes in a byte that its header calls an integer.
        if tensor.dtype == "I8" and scale.dtype == "F8_E8M0" and scale.shape == _halved(tensor):
            return self._float4(name, name, tensor, "", scales=scales)
        is_integer = tensor.dtype == "I8"
        zeros = name + "_zero_point" if is_integer else ""
        return self._weight(
            name,
            tensor.shape,
            Coding.INT8 if is_integer else Coding.FLOAT8,
            8,
            codes=name,
            scales=scales,
            blocks=self._blocks(name, tensor.shape, scale),
            are_powers=scale.dtype in _POWERS,
            zeros=zeros if zeros in self.tensors else "",
            others=(name + "_zero_point",) if name + "_zero_point" in self.tensors else (),
        )

    def _packed(self, name: str, tensor: Tensor) -> CodedWeight:
        """compressed-tensors: `weight_packed`."""
        weight = name.removesuffix("_packed")
        others = tuple(
            each for each in (weight + "_shape", weight + "_zero_point") if each in self.tensors
        )
        if tensor.dtype == "U8":
            own = weight + "_global_scale"
            own = own if own in self.tensors else ""
            return self._float4(weight, name, tensor, own, divides=True, others=others)
        scale = self.tensors.get(weight + "_scale")
        if scale is None or tensor.dtype != "I32" or len(tensor.shape) != _MATRIX:
            raise _refused(
                f"The codes '{name[:100]}' are packed in a form that dynquant does not read "
                f"({tensor.dtype}{'' if scale is not None else ', no scale beside them'})."
            )
        bits, width = self._packed_width(weight, tensor, scale)
        shape = (tensor.shape[0], width)
        group_of = weight + "_g_idx"
        zeros = others[-1] if others and others[-1].endswith("_zero_point") else ""
        groups = self._scale_shape(shape, scale)[-1]
        if zeros and self.tensors[zeros].shape != (-(-shape[0] * bits // 32), groups):
            raise _misfit("zero points", weight, self.tensors[zeros].shape, shape)
        return self._weight(
            weight,
            shape,
            Coding.PACKED_INT,
            bits,
            codes=name,
            scales=weight + "_scale",
            blocks=self._blocks(weight, shape, scale),
            zeros=zeros,
            group_of=group_of if group_of in self.tensors and groups > 1 else "",
            others=(*others, *([group_of] if group_of in self.tensors else [])),
        )

    def _blocks_of_float4(self, name: str, tensor: Tensor) -> CodedWeight:
        """gpt-oss: (..., out, groups, 16 bytes)."""
        base = name.removesuffix("_blocks")
        scales = self.tensors.get(base + "_scales")
        if scales is None or scales.shape != tensor.shape[:-1] or tensor.shape[-1] != _MX_BYTES:
            given = list(scales.shape) if scales is not None else "absent"
            raise _refused(
                f"The scales of '{name[:100]}' are {given}, and its shape {list(tensor.shape)} "
                "asks for one for each 16 bytes."
            )
        joined = Tensor(tensor.dtype, (*tensor.shape[:-2], tensor.shape[-2] * _MX_BYTES))
        return self._float4(base + ".weight", name, joined, "", scales=base + "_scales")

    def _float4(
        self,
        weight: str,
        codes: str,
        tensor: Tensor,
        global_scale: str,
        *,
        divides: bool = False,
        scales: str = "",
        others: tuple[str, ...] = (),
    ) -> CodedWeight:
        """Two codes a byte, (..., out, in / 2), with a scale for each group."""
        scales = scales or weight + "_scale"
        shape = (*tensor.shape[:-1], 2 * tensor.shape[-1])
        scale = self.tensors.get(scales)
        size = _FLOAT4_GROUPS.get(scale.dtype, 0) if scale is not None else 0
        wanted = (*shape[:-1], shape[-1] // size) if size and shape[-1] % size == 0 else ()
        if scale is None or scale.shape != wanted:
            raise _misfit("scales", weight, scale.shape if scale is not None else (), shape)
        return self._weight(
            weight,
            shape,
            Coding.FLOAT4,
            4,
            codes=codes,
            scales=scales,
            blocks=(*(1 for _ in shape[:-1]), size),
            are_powers=scale.dtype in _POWERS,
            global_scale=global_scale,
            divides=divides,
            others=others,
        )

    def _weight(
        self, name: str, shape: tuple[int, ...], coding: Coding, bits: int, **fields: Any
    ) -> CodedWeight:
        scale = self.tensors[fields["scales"]]
        return CodedWeight(
            name=name,
            shape=shape,
            dtype=scale.dtype if scale.dtype in _HALVES.values() else self.half,
            coding=coding,
            bits=bits,
            scale_shape=self._scale_shape(shape, scale),
            **fields,
        )

    def _packed_width(self, weight: str, packed: Tensor, scale: Tensor) -> tuple[int, int]:
        """Bits of a code and codes in a row, of the config's groups the one that fits the shapes.

        The tensor `weight_shape` says it too, but planning has headers only.
        """
        words, count = packed.shape[-1], self._scale_shape(packed.shape, scale)[-1]
        layer = weight.removesuffix(".weight")
        fitting: dict[tuple[int, int], bool] = {}
        for targets, group in self._groups():
            bits, size = group.get("num_bits"), group.get("group_size")
            if bits in _PACKED_BITS:
                per_word = 32 // bits
                width = count * size if isinstance(size, int) and size > 0 else words * per_word
                if -(-width // per_word) == words and (count == 1 or width % count == 0):
                    is_named = layer in targets or fitting.get((bits, width), False)
                    fitting[bits, width] = is_named
        named = [each for each, is_named in fitting.items() if is_named] or list(fitting)
        # Patterns among the targets are a stranger's, and a pattern can take hours to match.
        if len(named) != 1:
            raise _misfit("scales", weight, scale.shape, packed.shape)
        return named[0]

    def _groups(self) -> Iterator[tuple[Sequence[Any], Mapping[str, Any]]]:
        """Targets and settings of the weights of each group that the config names."""
        groups = self.settings.get("config_groups")
        for group in groups.values() if isinstance(groups, Mapping) else ():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping):
                targets = group.get("targets")
                yield (targets if isinstance(targets, list) else []), weights

    def _scale_shape(self, shape: tuple[int, ...], scale: Tensor) -> tuple[int, ...]:
        """Shape of the scales with as many axes as the weight has."""
        given = scale.shape
        if len(given) == len(shape):
            return given
        if len(given) == 1 and given[0] == shape[-2]:
            return (*(1 for _ in shape[:-2]), given[0], 1)  # one for each row
        return (*given, *(1 for _ in shape[len(given) :]))

    def _blocks(self, name: str, shape: tuple[int, ...], scale: Tensor) -> tuple[int, ...]:
        """How many weights along each axis share a scale.

        Raises:
            UnsupportedModelError: The shapes do not fit.
        """
        said = self.settings.get("weight_block_size")
        block = said if isinstance(said, list) and all(type(s) is int for s in said) else []
        own = [*(0 for _ in shape[len(block) :]), *block][-len(shape) :]
        counts = self._scale_shape(shape, scale)
        sizes = []
        for size, count, stated in zip(shape, counts, own, strict=False):
            wanted = (size, stated, _BLOCK, size // max(count, 1))
            fitting = (each for each in wanted if each > 0 and -(-size // each) == count)
            sizes.append(next(fitting, 0))
        if len(counts) != len(shape) or not all(sizes):
            raise _misfit("scales", name, scale.shape, shape)
        return tuple(sizes)


def _scale_names(name: str) -> tuple[str, ...]:
    """Possible names of the scales of weight `name`; each multiplies the codes."""
    return (name + "_scale_inv", name + "_scale", name.removesuffix("weight") + "scale")


def _halved(tensor: Tensor) -> tuple[int, ...]:
    """Shape of the scales if a byte of `tensor` holds two codes, in groups of 32."""
    return (*tensor.shape[:-1], 2 * tensor.shape[-1] // 32)


def _half_named(config: Mapping[str, Any]) -> str:
    return next((_HALVES[name] for name in dtype_names(config) if name in _HALVES), "BF16")


def _misfit(
    what: str, name: str, given: Sequence[int], shape: Sequence[int]
) -> UnsupportedModelError:
    return _refused(
        f"The {what} of the weight '{name[:100]}' have the shape {list(given)}, which does not go "
        f"with its own {list(shape)}."
    )


def _refused(sentence: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{sentence} Use another version of the model.", reason=Reason.ALREADY_QUANTIZED
    )
