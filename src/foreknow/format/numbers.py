"""Writes shares, counts, p-values, rates and durations as text. Shares are 0 to 1. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foreknow.stats import Interval


def percent(share: float) -> str:
    """A share as whole per cent; "<1 %" and ">99 %" if rounding would claim none or all."""
    if 0 < share < 0.005:
        return "<1 %"
    if 0.995 <= share < 1:
        return ">99 %"
    return f"{100 * share:.0f} %"


def whole_percent(share: float | None) -> str:
    """A share as whole per cent, rounded to 0 and 100 % too; a dash for None."""
    return "–" if share is None else f"{100 * share:.0f} %"


def percent_interval(interval: Interval) -> str:
    """A share with the ends of its interval: 39 % (34–43)."""
    return f"{percent(interval.value)} ({100 * interval.low:.0f}–{100 * interval.high:.0f})"


def exact(share: float) -> str:
    """A share with one decimal: 36.7 %; "<0.1 %" and ">99.9 %" if rounding would claim none or all."""
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"


def exact_interval(interval: Interval) -> str:
    """A share with the ends of its interval: 36.7 % (33–40)."""
    return f"{exact(interval.value)} ({100 * interval.low:.0f}–{100 * interval.high:.0f})"


def number(value: float | None) -> str:
    """A probability or rate with three significant digits, whole from 100 on; a dash for None."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def p_value(p: float) -> str:
    """A p-value with two decimals, three if it is below 0.01, or "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.01 else f"p = {p:.2f}"


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 row, 1,200 rows."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def enumeration(parts: Sequence[str], word: str = "and") -> str:
    """The parts as a list in a sentence: a, b and c."""
    return f" {word} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def duration(seconds: float) -> str:
    """Format seconds: 42 s, 3 min 20 s, 2 h 5 min."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"


def rounded_duration(seconds: float) -> str:
    """Format seconds for a page, without the seconds of minutes: 85 s, 12 min, 2 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def format_rate(rows_per_second: float) -> str:
    """Rows a second with two digits that count, and never as a power of ten; seconds a row where a row takes ten."""
    if 0 < rows_per_second < 0.1:
        return f"{1 / rows_per_second:,.0f} s a row"
    digits = 0 if rows_per_second >= 10 else 1 if rows_per_second >= 1 else 2
    return f"{rows_per_second:,.{digits}f} rows/s"


def one_in(logprob: float) -> str:
    """A mean log-probability (nats) as a chance in words: 1 in 16."""
    if -logprob >= math.log(1e9):
        return "less than 1 in a billion"
    choices = math.exp(-logprob)
    if choices < 9.95:
        return f"1 in {choices:.1f}"
    if choices < 999.5:
        return f"1 in {choices:.0f}"
    rounded = float(f"{choices:.2g}")
    return f"1 in {rounded:,.0f}" if rounded < 1e6 else f"1 in {rounded / 1e6:g} million"


def factor(value: float) -> str:
    """A factor with a suitable number of digits: 1.5, 12, 0.98."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2f}" if value < 0.995 else f"{value:.1f}"


def row_numbers(rows: Sequence[int], total: int) -> str:
    """The numbers of the first rows of `total`: "row 3, 5, ..., counted from 0", as row 0 is a file's first record."""
    more = ", ..." if total > len(rows) else ""
    return f"row {', '.join(map(str, rows))}{more}, counted from 0"
