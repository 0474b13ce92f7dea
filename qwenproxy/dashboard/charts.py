"""Small pictures made by the server as SVG: geometry in attributes, colours from the style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SPARK_WIDTH, SPARK_HEIGHT = 120.0, 28.0


@dataclass(frozen=True, slots=True)
class Sparkline:
    """Lines in a box of SPARK_WIDTH by SPARK_HEIGHT: points for `<polyline>`; a gap ends one line."""

    lines: list[str]


def sparkline(values: Sequence[float | None]) -> Sparkline | None:
    """A line from 0 to the greatest value; null where there are not two values to connect."""
    known = [value for value in values if value is not None]
    top = max(known, default=0)
    if len(known) < 2 or top <= 0:
        return None
    step = SPARK_WIDTH / (len(values) - 1)
    lines: list[str] = []
    line: list[str] = []
    for index, value in enumerate([*values, None]):
        if value is None:
            if len(line) > 1:
                lines.append(" ".join(line))
            line = []
        else:
            # One unit of room at both edges, for the line's width.
            y = 1 + (SPARK_HEIGHT - 2) * (1 - value / top)
            line.append(f"{index * step:.1f},{y:.1f}")
    return Sparkline(lines) if lines else None


def shares(values: Sequence[float]) -> list[float]:
    """Lengths of bars in percent of the longest; what is not nothing is still seen."""
    top = max(values, default=0)
    return [max(100 * value / top, 0.5) if value and top else 0.0 for value in values]
