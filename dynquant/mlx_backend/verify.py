"""Load a written folder with stock mlx-lm in a process of its own, and generate from it.

Run as `python -m dynquant.mlx_backend.verify FOLDER`; prints one JSON object. Nothing
that the encoder left in memory can help the folder to load, no token is inherited, and the
process is confined as far as the system allows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from dynquant.confine import clean_environment, confined, is_confined
from dynquant.errors import VerificationError

__all__ = ["verify_folder"]

_PROMPT = "The"
_NUM_TOKENS = 24
_TIMEOUT_SECS = 3600


def verify_folder(folder: Path, *, stored_bpw: float) -> str:
    """Check that `folder` loads in stock mlx-lm and stores what was planned.

    Returns:
        What the model generated.

    Raises:
        VerificationError: It does not load, or its stored bits per weight differ.
    """
    command = [sys.executable, "-m", "dynquant.mlx_backend.verify", str(folder.absolute())]
    try:
        with tempfile.TemporaryDirectory(prefix="dynquant-verify-") as home:
            # MLX loads compiled code from there, so only confined processes share it.
            scratch = tempfile.gettempdir() if is_confined() else home
            child = subprocess.run(
                confined(command, writable=[Path(home)], readable=[folder]),
                env=clean_environment(Path(home), {"HF_HUB_OFFLINE": "1", "TMPDIR": scratch}),
                cwd=home,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_SECS,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise VerificationError("Loading the written model took longer than an hour.") from error
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise VerificationError(
            "Stock mlx-lm cannot load or run the written model: "
            f"{reason.replace(str(folder), 'the folder')[:300]}"
        )
    result = json.loads(child.stdout.strip().splitlines()[-1])
    if abs(result["stored_bpw"] - stored_bpw) > 1e-6:
        raise VerificationError(
            f"mlx-lm counts {result['stored_bpw']:.6f} stored bits per weight, and "
            f"{stored_bpw:.6f} were planned."
        )
    return str(result["text"])


def _main(folder: str) -> None:
    import mlx.core as mx  # noqa: PLC0415
    import mlx_lm  # noqa: PLC0415
    from mlx_lm.models.switch_layers import SwitchLinear  # noqa: PLC0415
    from mlx_lm.utils import compute_bits_per_weight  # noqa: PLC0415

    import dynquant.mlx_backend  # noqa: F401, PLC0415  OpenBLAS before MLX

    model, tokenizer, *_ = mlx_lm.load(folder)
    stored_bpw = compute_bits_per_weight(model)
    if mx.default_device() == mx.Device(mx.cpu):
        # On the CPU MLX multiplies unquantized experts in float32 only.
        for _, module in model.named_modules():
            if isinstance(module, SwitchLinear):
                model.set_dtype(mx.float32)
                break
    text = mlx_lm.generate(model, tokenizer, prompt=_PROMPT, max_tokens=_NUM_TOKENS)
    print(json.dumps({"stored_bpw": stored_bpw, "text": _PROMPT + text}))  # noqa: T201


if __name__ == "__main__":
    _main(sys.argv[1])
