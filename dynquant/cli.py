"""The command line: thin commands over the pipeline's functions."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dynquant import __version__, console
from dynquant.core.artefacts import (
    cost_table_from_json,
    cost_table_to_json,
    formats_to_json,
    is_cost_table,
    report,
    sensitivities_from_json,
    sensitivities_to_json,
)
from dynquant.core.formats import DEFAULT_MENU, QuantFormat, parse_menu
from dynquant.core.plan import CostTable
from dynquant.core.planning import parse_memory
from dynquant.corpus import DEFAULT_CALIBRATION, DEFAULT_EVALUATION
from dynquant.errors import (
    DynquantError,
    InvalidOptionError,
    OutputFolderError,
    SensitivitiesError,
)
from dynquant.outputs import OutputFolders, check_file, write_file
from dynquant.pipeline import Alignment, QuantizedModel, Recipe, forecast
from dynquant.pipeline import measure as measure_model
from dynquant.pipeline import quantize as quantize_model

__all__ = ["app", "main"]

_PATH_OPTIONS = ("--out", "--cost-table", "--sensitivities")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quantize language models with MLX to exactly the bits per weight (BPW) you ask for.",
)

_DEFAULT_RECIPE = Recipe(targets_bpw=())
_SEED_PAIR = ("4g64", "5g64", 0.0)  # formats and tolerance of mlx_lm.dynamic_quant
_MAX_SEED = 2**32 - 1
_MAX_CONTEXT_TOKENS = 10**9  # MLX counts the elements of a side in 32 bits

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
Seed = Annotated[
    int, typer.Option(min=0, max=_MAX_SEED, help="Seed of the labels sampled while measuring.")
]
CalibrationTokens = Annotated[int, typer.Option(min=1, help="Tokens to calibrate on.")]
EvaluationTokens = Annotated[
    int, typer.Option("--eval-tokens", min=1, help="Tokens to evaluate on.")
]
Context = Annotated[
    int,
    typer.Option(min=1, max=_MAX_CONTEXT_TOKENS, help="Context in tokens for memory figures."),
]
Dequantize = Annotated[
    bool, typer.Option("--dequantize", help="Take a model that is quantized already.")
]


@app.command()
def plan(
    model: Model,
    bpw: Annotated[
        str | None, typer.Option(help="Stored bits per weight; several with commas.")
    ] = None,
    fit: Annotated[
        str | None, typer.Option(help="Memory of your Mac, such as 16GB, instead of --bpw.")
    ] = None,
    formats: Formats = None,
    context: Context = _DEFAULT_RECIPE.context_tokens,
    dequantize: Dequantize = False,
    as_json: Json = False,
) -> None:
    """Say what a target gives and takes, from the headers alone: nothing is downloaded or read."""
    from dynquant.runner import open_model  # MLX takes a second to import

    if (bpw is None) == (fit is None):
        raise InvalidOptionError("Pass either --bpw or --fit.")
    memory_bytes = None if fit is None else parse_memory(fit)
    recipe = Recipe(
        targets_bpw=() if bpw is None else _targets(bpw),
        menu=_menu(formats),
        context_tokens=context,
    )
    with open_model(model, headers_only=True, dequantize=dequantize) as (source, quantizer):
        found = forecast(source, quantizer, recipe, fit_memory_bytes=memory_bytes)
    if as_json:
        console.print_json({"plans": [asdict(each) for each in found]})
    else:
        console.print_forecasts(found)


@app.command()
def measure(
    model: Model,
    out: Annotated[Path, typer.Option(help="Where to write the cost table.")],
    calibration: Calibration = DEFAULT_CALIBRATION,
    formats: Formats = None,
    encoder: EncoderName = _DEFAULT_RECIPE.encoder,
    calibration_tokens: CalibrationTokens = _DEFAULT_RECIPE.calibration_tokens,
    seed: Seed = _DEFAULT_RECIPE.seed,
    dequantize: Dequantize = False,
    as_json: Json = False,
) -> None:
    """Measure what every format of every layer costs, once for all targets."""
    from dynquant.runner import open_model, open_texts

    recipe = Recipe(
        targets_bpw=(),
        menu=_menu(formats),
        encoder=_encoder(encoder),
        calibration_tokens=calibration_tokens,
        seed=seed,
    )
    check_file(out)
    if out.exists() and not is_cost_table(_read(out)):
        raise OutputFolderError(
            f"'{out}' exists and is no cost table of dynquant. Pass another --out."
        )
    text = open_texts().open(calibration)
    with open_model(model, dequantize=dequantize) as (_, quantizer):
        table = measure_model(quantizer, text, recipe, progress=console.ConsoleProgress())
    write_file(out, cost_table_to_json(table))
    if as_json:
        console.print_json(
            {"cost_table": str(out), "method": table.method, "layers": len(table.inventory.layers)}
        )
    else:
        console.stdout.print(f"Wrote {out}: {len(table.inventory.layers)} layers, {table.method}.")


@app.command()
def quantize(
    model: Model,
    bpw: Bpw,
    out: Annotated[Path, typer.Option(help="Folder for one model folder per target.")],
    method: Annotated[str, typer.Option(help="fisher, or alignment (mlx_lm's own).")] = "fisher",
    formats: Formats = None,
    encoder: EncoderName = _DEFAULT_RECIPE.encoder,
    calibration: Calibration = DEFAULT_CALIBRATION,
    evaluation: Evaluation = DEFAULT_EVALUATION,
    cost_table: Annotated[
        Path | None, typer.Option(help="A cost table of 'dynquant measure' to use again.")
    ] = None,
    sensitivities: Annotated[
        Path | None,
        typer.Option(help="With --method alignment: read this file, or write it if it is new."),
    ] = None,
    low: Annotated[
        str, typer.Option(help="With --method alignment: the smaller format.")
    ] = _SEED_PAIR[0],
    high: Annotated[
        str, typer.Option(help="With --method alignment: the larger one.")
    ] = _SEED_PAIR[1],
    tolerance: Annotated[
        float,
        typer.Option(help="With --method alignment: share of the range that counts as equal."),
    ] = _SEED_PAIR[2],
    calibration_tokens: CalibrationTokens = _DEFAULT_RECIPE.calibration_tokens,
    eval_tokens: EvaluationTokens = _DEFAULT_RECIPE.evaluation_tokens,
    context: Context = _DEFAULT_RECIPE.context_tokens,
    seed: Seed = _DEFAULT_RECIPE.seed,
    dequantize: Dequantize = False,
    as_json: Json = False,
) -> None:
    """Quantize a model to each target, one finished folder each, with its card and figures."""
    from dynquant.runner import open_model, open_texts

    targets, menu = _targets(bpw), _menu(formats)
    if method not in {"fisher", "alignment"}:
        raise InvalidOptionError(f"There is no method '{method}'. Choose fisher or alignment.")
    aligned = method == "alignment"
    if sensitivities is not None and not aligned:
        raise InvalidOptionError("--sensitivities goes with --method alignment.")
    if not aligned and (low, high, tolerance) != _SEED_PAIR:
        raise InvalidOptionError("--low, --high and --tolerance go with --method alignment.")
    if aligned and (formats is not None or cost_table is not None):
        raise InvalidOptionError(
            "--formats and --cost-table go with --method fisher; the alignment method takes "
            "--low, --high and --sensitivities."
        )
    outputs, table = OutputFolders(out), _cost_table(cost_table)
    outputs.check([])
    if sensitivities is not None:
        check_file(sensitivities)
    pair = (QuantFormat.from_name(low), QuantFormat.from_name(high))
    texts = open_texts()
    calibration_text, evaluation_text = texts.open(calibration), texts.open(evaluation)
    with open_model(model, dequantize=dequantize) as (source, quantizer):
        known = None
        if aligned and sensitivities is not None and sensitivities.exists():
            known = sensitivities_from_json(
                _read(sensitivities), quantizer.inventory(pair), name=sensitivities.name
            )
        recipe = Recipe(
            targets_bpw=targets,
            menu=pair if aligned else menu,
            encoder=_encoder(encoder),
            alignment=Alignment(low=pair[0], high=pair[1], tolerance=tolerance, sensitivities=known)
            if aligned
            else None,
            calibration_tokens=calibration_tokens,
            evaluation_tokens=eval_tokens,
            context_tokens=context,
            seed=seed,
            command=_command(source.name, source.is_repo),
        )
        finished = quantize_model(
            source,
            quantizer,
            recipe,
            calibration=calibration_text,
            evaluation=evaluation_text,
            outputs=outputs,
            progress=console.ConsoleProgress(),
            table=table,
            on_sensitivities=lambda found: (
                write_file(sensitivities, sensitivities_to_json(found))
                if sensitivities is not None and known is None
                else None
            ),
        )
    if as_json:
        console.print_json({"models": [_result(each) for each in finished]})
    else:
        console.print_finished(finished)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder that dynquant or mlx-lm wrote.")],
    reference: Annotated[str, typer.Option(help="The original: a folder or a Hub id.")],
    evaluation: Evaluation = DEFAULT_EVALUATION,
    eval_tokens: EvaluationTokens = _DEFAULT_RECIPE.evaluation_tokens,
    as_json: Json = False,
) -> None:
    """Perplexity, KL divergence to the original and top-1 agreement, on held-out text."""
    from dynquant.runner import evaluate_folder

    original, quality = evaluate_folder(
        folder,
        reference,
        evaluation,
        num_tokens=eval_tokens,
        progress=console.ConsoleProgress(),
    )
    if as_json:
        console.print_json({"original": asdict(original), "quantized": asdict(quality)})
    else:
        console.print_quality(
            [("Original", None, None, original), (folder.name, None, None, quality)]
        )


@app.command()
def demo() -> None:
    """Quantize the small model that comes with dynquant; needs no network and no account."""
    from dynquant.demo import run_demo

    run_demo()


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    if version:
        console.stdout.print(__version__)
        raise typer.Exit
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def main() -> None:
    """Entry point: our errors become one sentence on stderr and an exit code."""
    try:
        app()
    except DynquantError as error:
        console.stderr.print(f"[bold red]Error:[/] {console.escaped(str(error))}")
        sys.exit(error.exit_code)


@contextmanager
def _option_errors(option: str, value: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InvalidOptionError(
            f"{option} must be numbers with commas, such as 4.5 or 3.5,4.5,6; got '{value}'."
        ) from error


def _targets(text: str) -> tuple[float, ...]:
    with _option_errors("--bpw", text):
        return tuple(float(part) for part in text.split(","))


def _menu(text: str | None) -> tuple[QuantFormat, ...]:
    return DEFAULT_MENU if text is None else parse_menu(text)


def _encoder(name: str) -> str:
    from dynquant.mlx_backend.encoders import check_encoder

    return check_encoder(name)


def _cost_table(path: Path | None) -> CostTable | None:
    return None if path is None else cost_table_from_json(_read(path), name=path.name)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SensitivitiesError(f"'{path}' cannot be read as text. Pass another file.") from error


def _command(source: str, is_repo: bool) -> str:
    """This command line, with names in place of paths of this machine."""
    words = ["dynquant"]
    for word in sys.argv[1:]:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        is_model = is_repo and value == source
        if (option or words[-1]) in _PATH_OPTIONS or (_is_path(value) and not is_model):
            value = Path(value).name or value
        words.append(f"{option}{equals}{value}")
    return shlex.join(words)


def _is_path(word: str) -> bool:
    """Whether `word` names something on this machine: a text may have `:column` behind it."""
    if "/" not in word:
        return False
    file = word.rpartition(":")[0]
    return word.startswith(("/", ".", "~")) or Path(word).exists() or Path(file or word).exists()


def _result(model: QuantizedModel) -> dict[str, Any]:
    rows = {row.label: asdict(row.quality) for row in model.facts.rows}
    return {
        "folder": str(model.folder),
        "stored_bpw": model.facts.plan.stored_bpw,
        "target_bpw": model.facts.plan.target_bpw,
        **rows["This model"],
        "sample": model.sample,
        "formats": formats_to_json(model.facts.plan),
        "report": report(model.facts),
    }
