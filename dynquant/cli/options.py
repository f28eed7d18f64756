"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from dynquant.errors import InvalidOptionError, SensitivitiesError, StorageFullError, TextError
from dynquant.quant.formats import DEFAULT_MENU, QuantFormat, parse_menu
from dynquant.quant.plan import CostTable
from dynquant.quant.recipe import (
    MAX_CONTEXT_TOKENS,
    MAX_MINUTES,
    MAX_SEED,
    MAX_TOKENS,
    Recipe,
)
from dynquant.report.artefacts import cost_table_from_json
from dynquant.report.forecast import Forecast
from dynquant.report.numbers import size

__all__ = [
    "DEFAULT_RECIPE",
    "Bpw",
    "Calibration",
    "CalibrationTokens",
    "Context",
    "CostTableFile",
    "Dequantize",
    "EffortName",
    "EncoderName",
    "Evaluation",
    "EvaluationTokens",
    "Formats",
    "Json",
    "Model",
    "Private",
    "Refine",
    "Revision",
    "Seed",
    "TimeBudget",
    "cost_table_in",
    "menu_in",
    "read",
    "require_room",
    "require_two_texts",
    "targets_in",
]

DEFAULT_RECIPE = Recipe(targets_bpw=())

Model = Annotated[str, typer.Argument(help="A local model folder, or a Hub id.")]
Bpw = Annotated[str, typer.Option(help="Stored bits per weight; several with commas.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Calibration = Annotated[
    str,
    typer.Option(
        help="Text to calibrate on: .txt, .jsonl, .parquet or org/name:config:split:column."
    ),
]
Evaluation = Annotated[
    str, typer.Option("--eval", help="Held-out text for the figures; like --calibration.")
]
Formats = Annotated[
    str | None, typer.Option(help="Formats to choose from, such as '3g64,4g64,8g32,unquantized'.")
]
EncoderName = Annotated[str, typer.Option("--encoder", help="gptq, wls or minmax.")]
EffortName = Annotated[
    str, typer.Option("--effort", help="fast, normal or max: how much work goes into quality.")
]
Refine = Annotated[
    bool,
    typer.Option("--refine", help="Distil scales and biases, as --effort max does."),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        "--time-budget",
        min=0,
        max=MAX_MINUTES,
        help="Minutes after which --effort max begins no further round.",
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, max=MAX_SEED, help="Seed of the labels sampled while measuring.")
]
CalibrationTokens = Annotated[
    int, typer.Option(min=1, max=MAX_TOKENS, help="Tokens to calibrate on.")
]
EvaluationTokens = Annotated[
    int, typer.Option("--eval-tokens", min=1, max=MAX_TOKENS, help="Tokens to evaluate on.")
]
Context = Annotated[
    int,
    typer.Option(min=1, max=MAX_CONTEXT_TOKENS, help="Context in tokens for memory figures."),
]
Dequantize = Annotated[
    bool, typer.Option("--dequantize", help="Take a model that is quantized already.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")]
Private = Annotated[
    bool | None,
    typer.Option(
        "--private/--public",
        help="Make new repos private, or public though the original is private.",
        show_default="as the original is",
    ),
]
CostTableFile = Annotated[
    Path | None, typer.Option(help="A cost table of 'dynquant measure' to use again.")
]


@contextmanager
def _option_errors(option: str, value: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InvalidOptionError(
            f"{option} must be numbers with commas, such as 4.5 or 3.5,4.5,6; got '{value}'."
        ) from error


def targets_in(text: str) -> tuple[float, ...]:
    """Bits per weight of `--bpw`."""
    with _option_errors("--bpw", text):
        if "_" in text:
            raise ValueError(text)  # Python reads 4_5 as 45
        return tuple(float(part) for part in text.split(","))


def menu_in(text: str | None) -> tuple[QuantFormat, ...]:
    """Formats of `--formats`."""
    return DEFAULT_MENU if text is None else parse_menu(text)


def cost_table_in(path: Path | None) -> CostTable | None:
    """The table of `--cost-table`."""
    return None if path is None else cost_table_from_json(read(path), name=path.name)


def read(path: Path) -> str:
    """Contents of a file that the person named."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SensitivitiesError(
            f"There is no file '{path}'. Check its name, or make it with 'dynquant measure'."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SensitivitiesError(f"'{path}' cannot be read as text. Pass another file.") from error


def require_two_texts(calibration: str, evaluation: str) -> None:
    """Refuse to evaluate on what was calibrated on.

    Raises:
        TextError: Both options name the same text.
    """
    if calibration == evaluation:
        raise TextError(
            "The text to evaluate on is the one to calibrate on, so its figures would flatter. "
            "Pass a text to --eval that the calibration did not see."
        )


def require_room(out: Path, forecasts: Sequence[Forecast]) -> None:
    """Refuse before any work when the finished models would not fit on the disk of `--out`.

    Raises:
        StorageFullError: They would not.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    need = sum(each.size_bytes for each in forecasts)
    if need > free:
        raise StorageFullError(
            f"The finished models take {size(need)}, and the disk of --out has {size(free)} free. "
            "Free some space there, or pass a folder on another disk."
        )
