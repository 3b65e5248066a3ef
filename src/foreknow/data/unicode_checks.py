"""Characters that a reader does not see or that stand in the wrong place, as conditions on columns of text. Pure.

    invisible   blanks of no width and joiners, marks of writing direction, soft hyphens, byte-order marks, fillers,
                tags, variation selectors, control characters; in answers also blanks that do not break a line
    garbled     no character at all (U+FFFD, private use, noncharacters), or UTF-8 that was read as Latin-1
    mixed       Latin and Cyrillic letters in one word, which look alike and are not

Where a script needs an invisible character it is not counted: joiners between letters of Arabic, Indic and other
scripts and in emoji, selectors behind emoji, symbols and Chinese characters, blanks of no width in Khmer or Thai.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Final

import polars as pl

_JOINED: Final = (
    r"[\p{Arabic}\p{Syriac}\p{Mandaic}\p{Nko}\p{Mongolian}\p{Devanagari}\p{Bengali}\p{Gurmukhi}\p{Gujarati}\p{Oriya}"
    r"\p{Tamil}\p{Telugu}\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Balinese}\p{Javanese}"
    r"\p{Tai_Tham}\p{Brahmi}\p{Grantha}\p{Thaana}\p{Mn}]"
)
_UNSPACED: Final = r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Tai_Tham}\p{Javanese}\p{Balinese}\p{Mn}]"
_PICTURE: Final = r"\p{Extended_Pictographic}"
_LEGITIMATE: Final = (
    (r"(\x{1f3f4})[\x{e0020}-\x{e007e}]+\x{e007f}", "$1"),  # flags of England, Scotland, Wales
    (r"([\p{Emoji}\p{S}\p{P}])[\x{fe00}-\x{fe0f}]", "$1"),
    (r"(\p{Han})[\x{fe00}-\x{fe02}\x{e0100}-\x{e01ef}]", "$1"),
    (r"(\p{Mongolian})[\x{180b}-\x{180f}]", "$1"),
    (r"(\p{Myanmar})[\x{fe00}]", "$1"),
    (rf"([{_PICTURE}\x{{1f3fb}}-\x{{1f3ff}}])\x{{200d}}({_PICTURE})", "$1$2"),
    (rf"([{_PICTURE}\x{{1f3fb}}-\x{{1f3ff}}])\x{{200d}}({_PICTURE})", "$1$2"),  # matches do not overlap: a family
    (rf"({_JOINED})[\x{{200c}}\x{{200d}}]", "$1"),
    (rf"({_UNSPACED})\x{{200b}}", "$1"),
)
"""What is taken out before the rest is looked at: pattern, replacement."""
_UNSEEN: Final = (
    r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{9f}\x{ad}\x{34f}\x{61c}\x{115f}\x{1160}\x{17b4}\x{17b5}\x{180b}-\x{180f}"
    r"\x{200b}-\x{200f}\x{2028}-\x{202e}\x{2060}-\x{206f}\x{3164}\x{fe00}-\x{fe0f}\x{feff}\x{ffa0}\x{fff9}-\x{fffb}"
    r"\x{1d173}-\x{1d17a}\x{e0000}-\x{e0fff}"
)
_UNBROKEN: Final = r"\x{a0}\x{2007}\x{202f}"
_GARBLED: Final = (
    r"[\x{fffd}\x{e000}-\x{f8ff}\x{f0000}-\x{10ffff}\x{fdd0}-\x{fdef}\x{fffe}\x{ffff}]"
    r"|[ÂÃ][\x{80}-\x{bf}]|â€|ï»¿|(?:[ÐÑØÙ][\x{80}-\x{bf}]){2}|(?:[à-ï][\x{80}-\x{bf}]{2}){2}"
)
_MIXED: Final = r"\p{Latin}\p{M}*\p{Cyrillic}|\p{Cyrillic}\p{M}*\p{Latin}"


def invisible(text: pl.Expr, *, answer: bool = False) -> pl.Expr:
    """Whether texts hold a character that nobody sees; of an answer also a blank that looks like another."""
    return _without_legitimate(text).str.contains(f"[{_UNSEEN}{_UNBROKEN if answer else ''}]")


def garbled(text: pl.Expr) -> pl.Expr:
    """Whether texts hold what is no character, or one that was read in the wrong encoding."""
    return text.str.contains(_GARBLED)


def mixed_scripts(text: pl.Expr) -> pl.Expr:
    """Whether Latin and Cyrillic letters stand side by side."""
    return text.str.contains(_MIXED)


def invisible_characters(texts: Iterable[pl.Series]) -> dict[str, int]:
    """How many texts hold each invisible character, by its code and name, in the order of the codes."""
    counts: Counter[str] = Counter()
    for series in texts:
        plain = pl.select(_without_legitimate(pl.lit(series.drop_nulls()))).to_series()
        matches = plain.str.extract_all(f"[{_UNSEEN}{_UNBROKEN}]")
        counts.update(character for each in matches.to_list() for character in set(each))
    return {f"U+{ord(c):04X} {unicodedata.name(c, 'control character')}": n for c, n in sorted(counts.items())}


def _without_legitimate(text: pl.Expr) -> pl.Expr:
    for pattern, replacement in _LEGITIMATE:
        text = text.str.replace_all(pattern, replacement)
    return text
