"""Convert a tiny model of every family: `python -m tests.families_table` writes docs/families.md.

Each row is what was seen: whether a conversion went through, and in which stock loaders the result
computed the logits of its plan.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX

# isort: split
import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model as load_in_mlx_lm

from dynquant.errors import DynquantError
from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.comparing import mean_kl_nats, streamed_logits
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.next_token import require_causal
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.uniform import nearest_uniform
from tests import families, vlm_families
from tests.quant.mlx.factories import make_windows

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"
MENU = (QuantFormat(4, 32), QuantFormat(8, 32))
_TOO_LARGE = "million parameters"
HEAD = """\
# Families of models

Written by `python -m tests.families_table`, which converts a tiny random model of every family of
the installed mlx-lm and mlx-vlm. "Text" means that the stock loaders compute from text what
the written weights stand for. "Image" means that tests compare the same for an image, in mlx-vlm.

"""


def main() -> int:
    """Write the page; the exit code."""
    rows = [*_language(), *_seeing()]
    text = sum(bool(loaders) for _, loaders, _ in rows)
    both = sum("mlx-vlm" in loaders and "mlx-lm" in loaders for _, loaders, _ in rows)
    sees = sum("mlx-vlm" in loaders for _, loaders, _ in rows)
    summary = (
        f"{text} of {len(rows)} families go in and come out; {sees} of them with their towers, "
        f"{both} of these load in both libraries.\n"
    )
    lines = [
        summary,
        "| family | text | image | loads in | remark |",
        "|---|---|---|---|---|",
        *(_row(*row) for row in rows),
    ]
    PAGE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _row(family: str, loaders: tuple[str, ...], remark: str) -> str:
    sees = "mlx-vlm" in loaders and family not in vlm_families.NO_IMAGE
    text = "yes" if loaders else "not tried" if _TOO_LARGE in remark else "no"
    marks = (text, "yes" if sees else "", ", ".join(loaders))
    return "| " + " | ".join((f"`{family}`", *marks, remark.replace("|", "/"))) + " |"


def _language() -> Iterator[tuple[str, tuple[str, ...], str]]:
    for family in families.FAMILIES:
        loaders, remark = _converted(families.save, family)
        yield family, loaders, families.REFUSED.get(family, remark)
    for family, why in families.EXCLUDED.items():
        yield family, (), why


def _seeing() -> Iterator[tuple[str, tuple[str, ...], str]]:
    for family in vlm_families.FAMILIES:
        loaders, remark = _converted(vlm_families.save, family)
        yield family, loaders, vlm_families.NO_TEXT.get(family, remark)
    for family, why in vlm_families.EXCLUDED.items():
        yield family, (), why


def _converted(save: object, family: str) -> tuple[tuple[str, ...], str]:
    """The stock loaders that run a quant of the family as planned, and a remark."""
    sys.stderr.write(f"{family}\n")
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        out.mkdir()
        try:
            save(family, source)  # type: ignore[operator]
            quantizer = MlxQuantizer(source, name=family)
            windows = make_windows(np.random.default_rng(0).integers(3, 100, (12, 16)))
            model = open_model(source)
            model.require_nothing_lost()
            if model.runtime.name == "mlx-vlm":
                engine = partial(streamed_logits, quantizer._blocks, model.lazy_weights)
                require_causal(engine, windows.tokens[0].tolist(), family=family)
            _, plan = nearest_uniform(quantizer.inventory(MENU), 8.0)
            quantizer.encode(
                {out: plan},
                windows,
                encoder="minmax",
                importance={},
                on_step=lambda _step, _amount=1: None,
            )
            return _loaders(quantizer, out, windows.tokens[0, :12].tolist())
        except (DynquantError, ValueError) as error:
            return (), " ".join(str(error).split())[:200]


def _loaders(quantizer: MlxQuantizer, out: Path, tokens: list[int]) -> tuple[tuple[str, ...], str]:
    """The loaders that compute what is planned, and the reason where there is none."""
    from mlx_vlm.utils import load_model as load_in_mlx_vlm

    from dynquant.quant.mlx.runtimes.mlx_vlm import with_plain_logits

    written = open_model(out, dequantize=True)
    (planned,) = streamed_logits(
        quantizer._blocks, lambda: written.lazy_weights(exact=True), [tokens]
    )
    loads = {"mlx-lm": lambda: load_in_mlx_lm(out)[0]}
    if written.runtime.name == "mlx-vlm":
        loads = {"mlx-vlm": lambda: with_plain_logits(load_in_mlx_vlm(out)), **loads}
    found, remark = list[str](), ""
    for name, load in loads.items():
        try:
            model = load()
            model.set_dtype(mx.float32)
            logits = np.asarray(model(mx.array([tokens]))[0].astype(mx.float32))
            if mean_kl_nats([planned], [logits]) < 1e-3:
                found.append(name)
        except Exception as error:  # noqa: BLE001  the library's own, of any kind
            remark = f"{name}: {' '.join(str(error).split())[:150]}"
    return tuple(found), "" if found else remark


if __name__ == "__main__":
    sys.exit(main())
