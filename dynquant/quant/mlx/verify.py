"""Check a written folder by what stock runtimes make of it, each in a fresh process.

Loading proves little: a model may load and answer NaN, or answer as another model. So the logits
of the stock runtime are compared with those of the plan, and looked at in the dtype that a user
runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np

from dynquant.errors import VerificationError
from dynquant.quant.mlx.comparing import are_finite, mean_kl_nats
from dynquant.quant.mlx.folder import has_processor
from dynquant.quant.mlx.model_inputs import ModelInputs
from dynquant.quant.mlx.stock_run import StockFailedError, StockRequest, StockRun, run_stock
from dynquant.quant.verified import Verified

__all__ = ["same_kl_nats", "verify_folder"]

logger = logging.getLogger(__name__)

_SAME_KL_NATS = {mx.cpu: 1e-3, mx.gpu: 1e-2}
"""Programs that compute the same model differ by less: in float32 on a CPU, in 16 bits on a GPU."""

_NUM_ROUNDINGS = 4.0
"""On a GPU the engine rounds to 16 bits as stock mlx-lm does, at other places."""

_MAX_OWN_KL_NATS = 0.5
"""A model that differs more in its own 16 bits from itself in 32 is of no use in them."""

_MIN_AGREEMENT = 0.5
"""Share of the positions at which the original would have gone on with about the same token."""
_ALIKE_NATS = 1.0
"""Two tokens that are e times as likely as each other, or less, are about as likely."""

Logits = Callable[[Sequence[Sequence[int] | ModelInputs]], list[np.ndarray]]


def verify_folder(
    folder: Path,
    *,
    stored_bpw: float,
    windows: Sequence[Sequence[int]] = (),
    planned: Logits | None = None,
    original: Logits | None = None,
    text: Sequence[int] = (),
    runtime: str = "mlx-lm",
    home: Path | None = None,
) -> Verified:
    """Check that `folder` loads in its stock runtime, stores what was planned and computes it.

    Of mlx-vlm a question about a generated image is asked too, and stock mlx-lm is tried with text.

    Args:
        folder: A written folder.
        stored_bpw: Bits per weight of the plan.
        windows: Token ids to run, several lengths.
        planned: Windows → logits of the weights that the plan stores; None to compare nothing.
        original: Windows → logits of the source; None where it is not at hand.
        text: Token ids of a long text, to time it and to try caches on; empty to do neither.
        runtime: `mlx-lm` or `mlx-vlm`.
        home: See `stock_run.answer_of`.

    Raises:
        VerificationError: It does not load, its stored bits per weight differ, or it computes
            something else than planned, NaN or infinity, or repeats one token.
    """
    stock, sees = f"stock {runtime}", runtime == "mlx-vlm" and has_processor(folder)
    try:
        run = run_stock(
            folder,
            StockRequest(
                runtime=runtime,
                windows=windows,
                image=sees,
                generate=True,
                text=text,
            ),
            home=home,
        )
    except StockFailedError as error:
        raise VerificationError(
            f"The written model does not load or run in {stock}: {error}"
        ) from error
    if abs(run.stored_bpw - stored_bpw) > 1e-6:
        raise VerificationError(
            f"In {stock} the written model has {run.stored_bpw:.6f} stored bits per weight, and "
            f"{stored_bpw:.6f} were planned."
        )
    inputs: list[Sequence[int] | ModelInputs] = [*windows]
    if run.image is not None:
        inputs.append(run.image)
    expected = planned(inputs) if planned is not None else None
    _check_logits(run, expected, stock)
    if original is not None:
        _check_variety(run, original, stock)
    runtimes = [runtime]
    if runtime != "mlx-lm" and _runs_in_mlx_lm(folder, windows, expected, home):
        runtimes.append("mlx-lm")
    return Verified(
        run.text,
        tuple(runtimes),
        saw_image=run.image is not None,
        speed=run.speed,
        cache_losses=run.cache_losses,
    )


def _runs_in_mlx_lm(
    folder: Path,
    windows: Sequence[Sequence[int]],
    expected: Sequence[np.ndarray] | None,
    home: Path | None,
) -> bool:
    """Whether stock mlx-lm, too, computes from text what was planned."""
    try:
        run = run_stock(folder, StockRequest(windows=windows, generate=True), home=home)
        _check_logits(run, None if expected is None else expected[: len(windows)], "stock mlx-lm")
    except (StockFailedError, VerificationError) as error:
        logger.info("The model runs in mlx-vlm only, not in mlx-lm: %s", error)
        return False
    return True


def same_kl_nats(run: StockRun) -> float:
    """Largest mean KL between the engine's logits and `run.computed` that arithmetic explains."""
    device = mx.default_device().type
    allowed = _SAME_KL_NATS[device]
    if device == mx.gpu and run.own is not None and are_finite(run.own):
        allowed += _NUM_ROUNDINGS * mean_kl_nats(run.computed, run.own)
    return allowed


def _check_logits(run: StockRun, planned: Sequence[np.ndarray] | None, stock: str) -> None:
    for logits in (run.computed, run.own or ()):
        if not are_finite(logits):
            raise VerificationError(
                f"The written model computes NaN or infinity in {stock}, so it would answer "
                "nonsense. Nothing was kept; report this model to dynquant."
            )
    if planned is not None:
        apart = mean_kl_nats(planned, run.computed)
        if not apart <= same_kl_nats(run):
            raise VerificationError(
                f"In {stock} the written model computes something else than was planned (mean KL "
                f"{apart:.2g} nats). Nothing was kept; report this model to dynquant."
            )
    if run.own is not None and run.computed:
        lost = mean_kl_nats(run.computed, run.own)
        if not lost <= _MAX_OWN_KL_NATS:
            raise VerificationError(
                f"In the dtype that it is stored in the written model computes something else than "
                f"in float32 (mean KL {lost:.2g} nats). Nothing was kept."
            )


def _check_variety(run: StockRun, original: Logits, stock: str) -> None:
    """A model that repeats one token is dead, unless its original does the same."""
    tokens = run.generated
    if len(tokens) < 2 or len(set(tokens)) > 1:
        return
    (logits,) = original([[*run.prompt, *tokens[:-1]]])
    logits = logits[-len(tokens) :]
    # How much less likely than its own choice the original finds the token: of a model that was
    # hardly trained all are about as likely, and which is chosen says nothing.
    lag_nats = logits.max(-1) - logits[:, tokens[0]]
    agreement = float((lag_nats <= _ALIKE_NATS).mean())
    if agreement < _MIN_AGREEMENT:
        raise VerificationError(
            f"The written model repeats one token for ever in {stock}, and its original does not. "
            "Nothing was kept; ask for more bits per weight."
        )
