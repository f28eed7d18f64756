"""Recognizes quantized sources by their config and by the headers of their tensors.

A config may not mention it: weights are cast to float8 by hand, or the file that describes the
quantization is missing. The dtypes and names of the tensors always show it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Tensor", "is_weight_name", "quantization_settings", "quantized_form"]

_METHODS = {
    "aqlm": "AQLM",
    "auto-round": "AutoRound",
    "autoround": "AutoRound",
    "awq": "AWQ",
    "bitnet": "BitNet",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "EETQ",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "fbgemm_fp8": "float8 (FBGEMM)",
    "fp8": "float8",
    "gptq": "GPTQ",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "intel/auto-round": "AutoRound",
    "modelopt": "NVIDIA ModelOpt",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "quanto": "Quanto",
    "quark": "AMD Quark",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}
_CODES = {"I8": "int8", "U8": "packed bytes", "I32": "packed int32", "F4": "float4"}
_CODES |= dict.fromkeys(("F8_E4M3", "F8_E5M2"), "float8")
_BY_NAME = (
    (re.compile(r"\.(absmax|quant_map|nested_absmax|quant_state\..+)$"), "bitsandbytes NF4 or FP4"),
    (re.compile(r"\.SCB$"), "bitsandbytes int8"),
    (re.compile(r"\.g_idx$"), "GPTQ"),
    (re.compile(r"\.(trellis|svh|suh)$"), "EXL3"),
    (re.compile(r"\.(q_scale_max|q_invperm)$"), "EXL2"),
    (re.compile(r"\.weight_packed$"), "compressed-tensors"),
    (re.compile(r"_blocks$"), "MXFP4"),
    (re.compile(r"\.weight_scale_2$"), "NVFP4"),
)
_WEIGHT = re.compile(r"(weight|_proj|_blocks|_packed|qweight|codes)$")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in a safetensors header.

    Attributes:
        dtype: Its name there: `BF16`, `F8_E4M3`.
        shape: Its sizes.
    """

    dtype: str
    shape: tuple[int, ...]


def quantized_form(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the weights' quantization; None for plain floats.

    Args:
        config: `config.json`.
        tensors: Name → tensor of all weight files; may be empty where only the config is known.

    >>> quantized_form({"quantization_config": None}, {"lm_head.weight": Tensor("BF16", (8, 8))})
    >>> quantized_form({}, {"up_proj.weight": Tensor("F8_E4M3", (8, 8))})
    'float8 (F8_E4M3)'
    """
    return _form_said(config) or _form_seen(tensors)


def quantization_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a quantization in the config; empty where there are none to read."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        settings = part.get("quantization_config")
        if isinstance(settings, Mapping) and settings:
            return settings
    return {}


def is_weight_name(name: str) -> bool:
    """Whether a tensor of several axes and this name is a weight, and no mask or index."""
    return _WEIGHT.search(name) is not None


def _form_said(config: Mapping[str, Any]) -> str | None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        if part.get("quantization"):
            return "MLX"
        settings = part.get("quantization_config")
        if isinstance(settings, Mapping) and settings:
            method = settings.get("quant_method")
            if method is None:
                return "MLX" if "group_size" in settings else "an unnamed form"
            return _METHODS.get(str(method).lower(), f"'{str(method)[:40]}'")
        if settings:
            return "an unnamed form"
    return None


def _form_seen(tensors: Mapping[str, Tensor]) -> str | None:
    for pattern, form in _BY_NAME:
        if any(pattern.search(name) for name in tensors):
            return form
    if any(name.endswith(".qweight") for name in tensors):
        return "AWQ" if _is_awq(tensors) else "GPTQ"
    for name, tensor in tensors.items():
        if tensor.dtype == "U32" and f"{name.removesuffix('weight')}scales" in tensors:
            return "MLX"
        if tensor.dtype in _CODES and len(tensor.shape) > 1 and is_weight_name(name):
            return f"{_CODES[tensor.dtype]} ({tensor.dtype})"
    return None


def _is_awq(tensors: Mapping[str, Tensor]) -> bool:
    """AWQ packs along the outputs: its codes are narrower than its scales, unlike GPTQ's."""
    for name, tensor in tensors.items():
        scales = tensors.get(name.removesuffix("qweight") + "scales")
        if name.endswith(".qweight") and scales is not None and tensor.shape and scales.shape:
            return tensor.shape[-1] < scales.shape[-1]
    return False
