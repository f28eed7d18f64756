"""The options of `--method alignment`: two formats, and sensitivities that a file may keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynquant.cli.options import read
from dynquant.errors import InvalidOptionError
from dynquant.quant.formats import QuantFormat
from dynquant.quant.recipe import Alignment, Recipe
from dynquant.report.artefacts import sensitivities_from_json, sensitivities_to_json
from dynquant.report.outputs import check_file, write_file

if TYPE_CHECKING:
    from dynquant.quant.mlx.quantizer import MlxQuantizer

__all__ = ["AlignmentOptions"]

# Formats and tolerance of mlx_lm.dynamic_quant.
_LOW, _HIGH, _TOLERANCE = "4g64", "5g64", 0.0


@dataclass(frozen=True, kw_only=True)
class AlignmentOptions:
    """The method, and the options that belong to mlx_lm's own."""

    method: Annotated[
        str, typer.Option(metavar="fisher|alignment", help="alignment is mlx_lm's own method.")
    ] = "fisher"
    sensitivities: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --method alignment: read this file, or write it if it is new.",
        ),
    ] = None
    low: Annotated[
        str, typer.Option(metavar="FORMAT", help="With --method alignment: the smaller format.")
    ] = _LOW
    high: Annotated[
        str, typer.Option(metavar="FORMAT", help="With --method alignment: the larger one.")
    ] = _HIGH
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="With --method alignment: share of the range that counts as equal.",
        ),
    ] = _TOLERANCE

    def require_match(self, of_fisher: Mapping[str, bool]) -> None:
        """Refuse options that belong to the other method.

        Args:
            of_fisher: Option that only the Fisher method has → whether it was passed.

        Raises:
            InvalidOptionError: There is such an option, or no such method.
        """
        of_alignment = {
            "--sensitivities": self.sensitivities is not None,
            "--low": self.low != _LOW,
            "--high": self.high != _HIGH,
            "--tolerance": self.tolerance != _TOLERANCE,
        }
        foreign = {"fisher": of_alignment, "alignment": of_fisher}
        if self.method not in foreign:
            raise InvalidOptionError(
                f"There is no method '{self.method}'. Choose fisher or alignment."
            )
        other = "alignment" if self.method == "fisher" else "fisher"
        if passed := [name for name, is_passed in foreign[self.method].items() if is_passed]:
            raise InvalidOptionError(
                f"{' and '.join(passed)} cannot be used with --method {self.method}, "
                f"only with --method {other}."
            )
        if self.sensitivities is not None:
            check_file(self.sensitivities)

    def applied_to(self, recipe: Recipe) -> Recipe:
        """The recipe with the chosen method."""
        if self.method == "fisher":
            return recipe
        low, high = self._pair()
        alignment = Alignment(low=low, high=high, tolerance=self.tolerance)
        return replace(recipe, menu=(low, high), alignment=alignment)

    def with_stored(self, recipe: Recipe, quantizer: MlxQuantizer) -> Recipe:
        """The recipe with the sensitivities of the file, where there is a file.

        Raises:
            SensitivitiesError: The file cannot be read, or is of another model.
        """
        path = self.sensitivities
        if recipe.alignment is None or path is None or not path.exists():
            return recipe
        found = sensitivities_from_json(
            read(path), quantizer.inventory(self._pair()), name=path.name
        )
        return replace(recipe, alignment=replace(recipe.alignment, sensitivities=found))

    def store(self, measured: Mapping[str, float]) -> None:
        """Write measured sensitivities into the file, unless they come from there."""
        if self.sensitivities is not None and not self.sensitivities.exists():
            write_file(self.sensitivities, sensitivities_to_json(measured))

    def _pair(self) -> tuple[QuantFormat, QuantFormat]:
        return QuantFormat.from_name(self.low), QuantFormat.from_name(self.high)
