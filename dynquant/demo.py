"""`make demo`: the main job on the small model that comes with dynquant, without network."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics

from dynquant import console
from dynquant.core.facts import ModelFacts
from dynquant.errors import ModelNotFoundError
from dynquant.pipeline import Recipe, forecast, quantize
from dynquant.runner import OutputFolders, open_model, open_texts

__all__ = ["run_demo"]

_EXAMPLE = Path(__file__).parents[1] / "examples" / "sample-2m"
_OUT = Path("out") / "demo"
_TARGETS_BPW = (3.5, 4.5, 6.0)
_TOKENS = 8_192


def run_demo(say: Callable[[str], None] = console.stdout.print) -> list[ModelFacts]:
    """Plan and quantize `examples/sample-2m`, and show the figures and what it generates.

    The text is Python's own help, which every Python brings along: one half of its topics
    to calibrate on, the other half for the figures.

    Raises:
        ModelNotFoundError: dynquant runs outside of its repository.
    """
    if not _EXAMPLE.is_dir():
        raise ModelNotFoundError(
            "The demo needs examples/sample-2m, which comes with the repository. "
            "Clone it and run 'make demo' there."
        )
    recipe = Recipe(
        targets_bpw=_TARGETS_BPW,
        calibration_tokens=_TOKENS,
        evaluation_tokens=_TOKENS,
        context_tokens=256,
        command=f"dynquant quantize sample-2m --bpw {','.join(map(str, _TARGETS_BPW))}",
    )
    # Topics repeat each other's paragraphs; each counts once, so that the halves share none.
    pages = "\n\n".join(text for _, text in sorted(topics.topics.items()))
    paragraphs = list(dict.fromkeys(pages.split("\n\n")))
    half = len(paragraphs) // 2
    with tempfile.TemporaryDirectory() as scratch, open_model(str(_EXAMPLE)) as (source, quantizer):
        texts = []
        for name, part in (
            ("python-help-1.txt", paragraphs[:half]),
            ("python-help-2.txt", paragraphs[half:]),
        ):
            path = Path(scratch) / name
            path.write_text("\n\n".join(part), encoding="utf-8")
            texts.append(open_texts().open(str(path)))
        say("[bold]The plan[/], from the headers alone (dynquant plan):")
        console.print_forecasts(forecast(source, quantizer, recipe))
        say("[bold]Quantizing[/] (dynquant quantize):")
        finished = quantize(
            source,
            quantizer,
            recipe,
            calibration=texts[0],
            evaluation=texts[1],
            outputs=OutputFolders(_OUT),
            progress=console.ConsoleProgress(),
        )
    console.print_finished(finished)
    say(f"Run one yourself: mlx_lm.generate --model {finished[1].folder} --prompt 'The'")
    return [each.facts for each in finished]
