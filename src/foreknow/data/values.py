"""Converts the value of a cell to the text a person would write, and recognises words that stand for a missing value.

    1912.0, Decimal("1912.00")        1912                          a column with gaps is one of floats in pandas
    1e21, 0.5, 1e-05                  1e21, 0.5, 0.00001
    date and time at midnight         1912-04-15                    a text that spells one too, as pandas writes it
    true, false (of an answer)        yes, no                       also accepted: Yes, true, True; a text stays first
    nan, null, None, N/A, #N/A, -     missing (`is_null_word`)      or a true answer: nobody can tell

The file itself never changes: its values are written back as they were.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Final

from foreknow.io.csv_escape import number_of

NULL_WORDS: Final = frozenset({
    "nan", "NaN", "NAN", "-nan", "-NaN", "null", "Null", "NULL", "None", "none", "NONE", "nil", "Nil", "NIL",
    "N/A", "n/a", "N/a", "NA", "#N/A", "#N/A N/A", "#NA", "<NA>", "<na>", "NaT", "undefined", "\\N", "(null)", "[null]",
    "<null>", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "#NULL!", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NUM!",
    "-", "--", "---", "\u2013", "\u2014",
})  # fmt: skip
"""What pandas, R, Excel, SQL, JavaScript and people write for a missing value."""
_WHOLE = re.compile(r"-?\d+\.0+")
_FLOAT = re.compile(r"-?\d+\.\d+(?:[eE][+-]?\d+)?")
_MIDNIGHT = re.compile(r"(\d{4}-\d{2}-\d{2})[ T]00:00(?::00(?:\.0+)?)?(?:Z|[+-]00:?00)?")
_DECIMAL_COMMA = re.compile(r"-?\d+,(?:\d{1,2}|\d{4,})")
_SPELLINGS: Mapping[bool, list[str]] = {True: ["yes", "Yes", "true", "True"], False: ["no", "No", "false", "False"]}

_TRUTHS: Mapping[str, bool] = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def is_null_word(text: str) -> bool:
    """Whether a text, without blanks around it, is one of `NULL_WORDS` (capitals count)."""
    return text.strip() in NULL_WORDS


def text_of(value: object) -> str | None:
    """The text a person would write for a value; None for an empty value, a truth value, or a type that has no text."""
    text = value.strip() if isinstance(value, str) else _non_text_value(value)
    return text if text and encodes(text) else None


def _non_text_value(value: object) -> str | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _float_text(value) if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return _decimal_text(value) if value.is_finite() else None
    if isinstance(value, datetime):
        at = value.time().replace(tzinfo=None)
        return value.date().isoformat() if at == time() else f"{value.date().isoformat()} {_time_text(at)}"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, time):
        return _time_text(value)
    if isinstance(value, bytes):
        try:
            return value.decode().strip()
        except UnicodeDecodeError:
            return None
    return None


def _float_text(value: float) -> str:
    if value == int(value) and abs(value) < 1e16:
        return str(int(value))
    digits, _, power = repr(value).partition("e")
    if not power:
        return digits
    return _decimal_text(Decimal(repr(value))) if -7 <= int(power) < 0 else f"{digits}e{int(power)}"


def _decimal_text(value: Decimal) -> str:
    """All digits of a number, without zeros at the end of a fraction."""
    text = format(value, "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-0", "0", int(value == 0))


def _time_text(value: time) -> str:
    """Hours and minutes, and seconds and their fractions if they are not 0."""
    if value.microsecond:
        return value.replace(tzinfo=None).isoformat().rstrip("0")
    return value.strftime("%H:%M:%S" if value.second else "%H:%M")


def spellings(value: object, *, of_floats: bool = False) -> list[str]:
    """The spellings of an answer: first the text a person would write, then others.

    `of_floats`: whether the column holds only numbers with a decimal point, so that 1912.0 means 1912.
    """
    if isinstance(value, bool):
        return _SPELLINGS[value]
    text = text_of(value)
    if text is None:
        return []
    if isinstance(value, str):
        if at_midnight := _MIDNIGHT.fullmatch(text):
            return [at_midnight[1], text]
        if text in _TRUTHS:
            return [text, *(other for other in _SPELLINGS[_TRUTHS[text]] if other != text)]
        if _WHOLE.fullmatch(text):
            whole = text.partition(".")[0]
            return [whole, text] if of_floats else [text, whole]
    return [text]


def holds_floats(values: Iterable[object]) -> bool:
    """Whether a column holds only texts that are numbers with a decimal point, and some are whole (1912.0)."""
    texts: list[str] = []
    for value in values:
        if isinstance(value, str):
            texts.append(value.strip())
        elif value is not None:
            return False
    filled = [text for text in texts if text and not is_null_word(text)]
    return any(map(_WHOLE.fullmatch, filled)) and all(map(_FLOAT.fullmatch, filled))


def in_order(answers: Sequence[str]) -> list[str]:
    """The answers without repeats; words that may stand for a missing value come last."""
    return sorted(dict.fromkeys(answers), key=is_null_word)


def quantity_of(value: object) -> float | None:
    """The number that a value is or spells, else None.

    A comma is a decimal comma unless it can separate thousands (12,5; not 1,912).
    """
    if isinstance(value, str) and _DECIMAL_COMMA.fullmatch(value.strip()):
        return number_of(value.replace(",", "."))
    return number_of(value)


def encodes(text: str) -> bool:
    """Whether UTF-8 can encode a text; it cannot encode half a surrogate pair, which JSON can spell."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
