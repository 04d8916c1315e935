"""The two drawings of the policy card, as inline SVG that prints.

Here: geometry. Not here: which numbers are drawn (`card`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from rl.evaluation.evidence import StrategyUse, ValueEstimate

WIDTH = 900
LOG_COLOUR = "#8c959f"
CANDIDATE_COLOUR = "#0b5c73"
_LABEL_WIDTH = 250
_RIGHT_MARGIN = 190
_ROW_HEIGHT = 27
_STRATEGY_WIDTH = 200
_SHARE_WIDTH = 100  # of "24.4 (+4.1)" beside the longest bar
_LINE_COLOUR = "#d8dee4"


@dataclass(frozen=True)
class IntervalRow:
    """One line of the interval plot."""

    label: str
    estimate: ValueEstimate
    colour: str = CANDIDATE_COLOUR


def interval_plot(rows: Sequence[IntervalRow], unit: str, title: str, reference: float | None = None) -> str:
    """Values as dots with their intervals as lines, and a dashed line at `reference`."""
    marks = [] if reference is None else [reference]
    ends = [*marks, *(row.estimate.low for row in rows), *(row.estimate.high for row in rows)]
    ticks = _ticks(min(ends), max(ends))
    scale = _Scale(min(*ends, ticks[0]), max(*ends, ticks[-1]))
    bottom = 12 + 34 * len(rows)
    parts = [_tick(scale.x(tick), bottom, f"{tick:.6g}") for tick in ticks]
    if reference is not None:
        x = scale.x(reference)
        parts.append(f'<line x1="{x:.1f}" y1="4" x2="{x:.1f}" y2="{bottom}" stroke="#1b1f24" stroke-dasharray="4 4"/>')
    parts += [_interval(row, scale, 28 + 34 * number) for number, row in enumerate(rows)]
    middle = (_LABEL_WIDTH + WIDTH - _RIGHT_MARGIN) / 2
    parts.append(_text(middle, bottom + 42, f"{unit} per dialogue", "middle", soft=True))
    return _svg(bottom + 50, title, parts)


def use_plot(use: Sequence[StrategyUse], strategies: Sequence[str], title: str) -> str:
    """One row per strategy, one column per stage; in each cell its share in the log above the candidate's."""
    stages = list(dict.fromkeys(each.stage for each in use))
    found = {(each.strategy, each.stage): each for each in use}
    largest = max((max(each.behavior_rate, each.candidate_rate) for each in use), default=1.0) or 1.0
    width = (WIDTH - _STRATEGY_WIDTH) / max(len(stages), 1)
    parts = []
    for column, stage in enumerate(stages):
        left = _STRATEGY_WIDTH + column * width
        parts.append(_text(left, 16, stage, soft=True))
        parts.append(_line(left, 26, left, 30 + _ROW_HEIGHT * len(strategies)))
        for row, strategy in enumerate(strategies):
            if (each := found.get((strategy, stage))) is not None:
                longest = width - _SHARE_WIDTH
                parts += _pair(each, left, longest / largest, 34 + _ROW_HEIGHT * row)
    parts += [_text(0, 34 + _ROW_HEIGHT * row + 14, name) for row, name in enumerate(strategies)]
    return _svg(34 + _ROW_HEIGHT * len(strategies), title, parts)


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    def x(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return _LABEL_WIDTH + (value - self.low) / span * (WIDTH - _LABEL_WIDTH - _RIGHT_MARGIN)


def _interval(row: IntervalRow, scale: _Scale, y: int) -> str:
    found = row.estimate
    ends = found.low, found.value, found.high
    low, mid, high = (scale.x(value) for value in ends)
    low_text, mid_text, high_text = (short_number(value) for value in ends)
    stroke = f'stroke="{row.colour}" stroke-width="2.5"'
    return (
        _text(0, y + 4, row.label)
        + f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" {stroke}/>'
        + "".join(f'<line x1="{x:.1f}" y1="{y - 6}" x2="{x:.1f}" y2="{y + 6}" {stroke}/>' for x in (low, high))
        + f'<circle cx="{mid:.1f}" cy="{y}" r="5" fill="{row.colour}"/>'
        + _text(WIDTH, y + 4, f"{mid_text}  [{low_text}, {high_text}]", "end")
    )


def _pair(use: StrategyUse, left: float, pixels: float, y: float) -> list[str]:
    bars = ((use.behavior_rate, LOG_COLOUR, y), (use.candidate_rate, CANDIDATE_COLOUR, y + 9))
    drawn = [
        f'<rect x="{left:.1f}" y="{top:.0f}" width="{max(rate * pixels, 0.5):.1f}" height="8" fill="{colour}"/>'
        for rate, colour, top in bars
    ]
    change = round(100 * (use.candidate_rate - use.behavior_rate), 1) + 0.0
    end = left + max(use.behavior_rate, use.candidate_rate) * pixels
    numbers = f"{100 * use.candidate_rate:.1f} ({change:+.1f})"
    return [*drawn, _text(end + 8, y + 14, numbers, soft=True)]


def _tick(x: float, bottom: int, label: str) -> str:
    return _line(x, 4, x, bottom) + _text(x, bottom + 20, label, "middle", soft=True)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.0f}" x2="{x2:.1f}" y2="{y2:.0f}" stroke="{_LINE_COLOUR}"/>'


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two ends."""
    if not high > low:
        return [low]
    raw = (high - low) / 4
    magnitude = 10 ** np.floor(np.log10(raw))
    step = float(magnitude * next(factor for factor in (1, 2, 5, 10) if factor * magnitude >= raw))
    first = int(np.ceil(low / step))
    return [number * step for number in range(first, int(np.floor(high / step)) + 1)] or [low]


def short_number(value: float) -> str:
    """Three significant digits, zeros kept, so that the ends of an interval are written alike."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _text(x: float, y: float, text: str, anchor: str = "start", soft: bool = False) -> str:
    kind = ' class="soft"' if soft else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
