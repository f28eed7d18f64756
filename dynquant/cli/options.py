"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from dynquant.errors import InvalidOptionError, SensitivitiesError, StorageFullError, TextError
from dynquant.model.naming import repo_in
from dynquant.quant.formats import DEFAULT_MENU, QuantFormat, parse_menu
from dynquant.quant.recipe import (
    DTYPES,
    EFFORTS,
    ENCODERS,
    MAX_CONTEXT_TOKENS,
    MAX_MINUTES,
    MAX_SEED,
    MAX_TOKENS,
    TOWERS,
    Recipe,
)
from dynquant.report.forecast import Forecast
from dynquant.report.numbers import size

__all__ = [
    "DEFAULT_RECIPE",
    "Bpw",
    "Calibration",
    "CalibrationImages",
    "CalibrationTokens",
    "Context",
    "Dequantize",
    "Distil",
    "Dtype",
    "EffortName",
    "EncoderName",
    "Evaluation",
    "EvaluationImages",
    "EvaluationTokens",
    "Formats",
    "Json",
    "Model",
    "Private",
    "Revision",
    "Seed",
    "TextOnly",
    "TimeBudget",
    "TowerChoice",
    "WorkOptions",
    "menu_in",
    "model_in",
    "read",
    "require_room",
    "require_two_texts",
    "targets_in",
    "tower_of",
    "with_option_records",
    "words_of",
]

DEFAULT_RECIPE = Recipe(targets_bpw=())


def model_in(text: str) -> str:
    """A folder as it is; the id in an address or between spaces, as the pages take it."""
    return text if os.path.exists(text) else repo_in(text)  # noqa: PTH110  false for any text


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        parser=model_in,
        help="A local model folder, or an id on the Hub or the address of its page.",
    ),
]
Bpw = Annotated[
    str,
    typer.Option(metavar="BPW[,BPW...]", help="Stored bits per weight; several with commas."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Calibration = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        show_default="chats of allenai/tulu-3-sft-mixture",
        help="Text to calibrate on: .txt, .jsonl, .parquet or org/name:config:split:column.",
    ),
]
Evaluation = Annotated[
    str,
    typer.Option(
        "--eval",
        metavar="TEXT",
        show_default="test part of Salesforce/wikitext",
        help="Held-out text for the figures; like --calibration.",
    ),
]
CalibrationImages = Annotated[
    str | None,
    typer.Option(
        metavar="IMAGES", help="Images to calibrate on beside the text; like --eval-images."
    ),
]
EvaluationImages = Annotated[
    str | None,
    typer.Option(
        "--eval-images",
        metavar="IMAGES",
        help="Images to ask about for the figures: a folder, or org/name:config:split:column.",
    ),
]
Formats = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT[,FORMAT...]",
        help="Formats to choose from, such as '3g64,4g64,8g32,unquantized'.",
    ),
]
EncoderName = Annotated[
    str,
    typer.Option(
        "--encoder", metavar="|".join(ENCODERS), help="How the codes of a layer are found."
    ),
]
EffortName = Annotated[
    str,
    typer.Option("--effort", metavar="|".join(EFFORTS), help="How much work goes into quality."),
]
Distil = Annotated[
    bool,
    typer.Option(
        "--distil", help="Distil the original into scales, biases and norms, as --effort max does."
    ),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        "--time-budget",
        metavar="MINUTES",
        min=0,
        max=MAX_MINUTES,
        help="Time after which --effort max begins no further round.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="NUMBER", min=0, max=MAX_SEED, help="Seed of the labels sampled while measuring."
    ),
]
CalibrationTokens = Annotated[
    int, typer.Option(metavar="COUNT", min=1, max=MAX_TOKENS, help="Tokens to calibrate on.")
]
EvaluationTokens = Annotated[
    int,
    typer.Option(
        "--eval-tokens", metavar="COUNT", min=1, max=MAX_TOKENS, help="Tokens to evaluate on."
    ),
]
Context = Annotated[
    int,
    typer.Option(
        "--context",
        metavar="TOKENS",
        min=1,
        max=MAX_CONTEXT_TOKENS,
        help="Context for memory figures.",
    ),
]
Dequantize = Annotated[
    bool, typer.Option("--dequantize", help="Take a quant that somebody made of a model too.")
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="|".join(DTYPES),
        help="How scales and unquantized weights of a float32 model are stored.",
    ),
]
TowerChoice = Annotated[
    str,
    typer.Option(
        "--tower",
        metavar="|".join(TOWERS),
        help="How parts that see or hear are stored: as they are, at 8 bits, or left out.",
    ),
]
TextOnly = Annotated[
    bool, typer.Option("--text-only", help="Leave parts that see or hear out, as --tower none.")
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="REVISION", help="Branch, tag or commit of a model on the Hub."),
]
Private = Annotated[
    bool | None,
    typer.Option(
        "--private/--public",
        help="Make new repos private, or public though the original is private.",
        show_default="as the original is",
    ),
]


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """Options of all commands that convert."""

    revision: Revision = None
    formats: Formats = None
    effort: EffortName = DEFAULT_RECIPE.effort
    distil: Distil = DEFAULT_RECIPE.distil
    time_budget_mins: TimeBudget = None
    dequantize: Dequantize = False
    dtype: Dtype = DEFAULT_RECIPE.dtype
    tower: TowerChoice = DEFAULT_RECIPE.tower
    text_only: TextOnly = False

    @property
    def tower_choice(self) -> str:
        """The value of `Recipe.tower`."""
        return tower_of(self.tower, text_only=self.text_only)


def tower_of(tower: str, *, text_only: bool) -> str:
    """The value of `Recipe.tower` for the two options on towers."""
    return "none" if text_only else tower


def with_option_records(command: Callable[..., None]) -> Callable[..., None]:
    """Allow dataclasses as parameters of a command; each of their fields is an option."""
    parameters = inspect.signature(command, eval_str=True).parameters
    records: dict[str, Any] = {
        name: each.annotation for name, each in parameters.items() if is_dataclass(each.annotation)
    }
    options = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, each in parameters.items()
        for option in (_options_of(records[name]) if name in records else [each])
    ]

    @wraps(command)
    def called(**values: Any) -> None:
        for name, record in records.items():
            values[name] = record(
                **{field.name: values.pop(field.name) for field in fields(record)}
            )
        command(**values)

    called.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return called


def _options_of(record: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(record, include_extras=True)
    parameters = inspect.signature(record).parameters
    return [each.replace(annotation=hints[name]) for name, each in parameters.items()]


def words_of(record: Any) -> list[str]:
    """The words of a command line that give `record` its values; its defaults take no words."""
    words = []
    hints = get_type_hints(type(record), include_extras=True)
    for name, each in inspect.signature(type(record)).parameters.items():
        value = getattr(record, name)
        if value != each.default:
            # Within Annotated, typer keeps the first name of an option as its default.
            option = hints[name].__metadata__[0].default
            if not isinstance(option, str):
                option = f"--{name.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    return words


def targets_in(text: str) -> tuple[float, ...]:
    """Bits per weight of `--bpw`."""
    try:
        # Python would read 4_5 as 45.
        return tuple(float(part.replace("_", "?")) for part in text.split(","))
    except ValueError as error:
        raise InvalidOptionError(
            f"--bpw must be numbers with commas, such as 4.5 or 3.5,4.5,6; got '{text}'."
        ) from error


def menu_in(text: str | None) -> tuple[QuantFormat, ...]:
    """Formats of `--formats`."""
    return DEFAULT_MENU if text is None else parse_menu(text)


def read(path: Path) -> str:
    """Contents of a file that an option names."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SensitivitiesError(
            f"There is no file '{path}'. Check its name, or make it with 'dynquant measure'."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SensitivitiesError(f"'{path}' cannot be read as text. Pass another file.") from error


def require_two_texts(calibration: str, evaluation: str) -> None:
    """Refuse to evaluate on the calibration text.

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
        StorageFullError: They would not fit.
    """
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    need = sum(each.size_bytes for each in forecasts)
    if need > free:
        raise StorageFullError(
            f"The finished models take {size(need)}, and the disk of --out has {size(free)} free. "
            "Free some space there, or pass a folder on another disk."
        )
