"""Layers in a grid: a row for each role, a column for each block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dynquant.quant.plan import LayerProfile
from dynquant.report.facts import ModelFacts

__all__ = ["GridCell", "GridRow", "LayerGrid", "layer_grid"]


@dataclass(slots=True, kw_only=True)
class GridCell:
    """One or several layers of the same role in the same block."""

    stored_bits: int = 0
    num_weights: int = 0
    names: list[str] = field(default_factory=list)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight."""
        return self.stored_bits / self.num_weights

    def add(self, layer: LayerProfile, facts: ModelFacts) -> None:
        """Add `layer` to the sums."""
        fmt = facts.plan.formats[layer.path]
        self.stored_bits += layer.stored_bits(fmt)
        self.num_weights += layer.num_weights
        self.names.append(f"{layer.path} {fmt.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRow:
    """The layers of one role.

    Attributes:
        label: Shortest unique end of the path.
        parent: Path of the parent module, by which rows are grouped.
        cells: Block → cell.
    """

    label: str
    parent: tuple[str, ...]
    cells: dict[int, GridCell]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGrid:
    """All layers of a model.

    Attributes:
        blocks: The blocks that have layers, ascending.
        rows: Roles within blocks, in the model's order, those of one parent together.
        outside: Layers outside of blocks, such as the embedding: label → cell.
    """

    blocks: tuple[int, ...]
    rows: tuple[GridRow, ...]
    outside: tuple[tuple[str, GridCell], ...]


def layer_grid(facts: ModelFacts) -> LayerGrid:
    """Sort the layers by the first number in their path, which is their block.

    Further numbers, such as those of experts that are kept apart, are folded into one role.
    """
    roles: dict[tuple[str, ...], dict[int, GridCell]] = {}
    outside: dict[tuple[str, ...], GridCell] = {}
    for layer in facts.layers:
        parts = tuple(layer.path.split("."))
        position = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if position is None:
            outside.setdefault(parts, GridCell()).add(layer, facts)
            continue
        rest = ("*" if part.isdecimal() else part for part in parts[position + 1 :])
        cells = roles.setdefault((*parts[:position], *rest), {})
        cells.setdefault(int(parts[position]), GridCell()).add(layer, facts)
    parents = list(dict.fromkeys(role[:-1] for role in roles))
    ordered = sorted(roles, key=lambda role: parents.index(role[:-1]))
    labels, outside_labels = _short_labels(ordered), _short_labels(list(outside))
    return LayerGrid(
        blocks=tuple(sorted({block for cells in roles.values() for block in cells})),
        rows=tuple(
            GridRow(label=label, parent=role[:-1], cells=roles[role])
            for role, label in zip(ordered, labels, strict=True)
        ),
        outside=tuple(zip(outside_labels, outside.values(), strict=True)),
    )


def _short_labels(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The shortest unique end of each path."""
    ends = Counter(path[-length:] for path in paths for length in range(1, len(path) + 1))
    return [
        ".".join(
            next(
                (path[-n:] for n in range(1, len(path) + 1) if ends[path[-n:]] == 1),
                path,
            )
        )
        for path in paths
    ]
