"""The names of SliCK's four categories (paper, section 2), from best known to not known."""

from __future__ import annotations

from typing import Final

HIGHLY_KNOWN: Final = "HighlyKnown"
MAYBE_KNOWN: Final = "MaybeKnown"
WEAKLY_KNOWN: Final = "WeaklyKnown"
UNKNOWN: Final = "Unknown"
CATEGORIES: Final = (HIGHLY_KNOWN, MAYBE_KNOWN, WEAKLY_KNOWN, UNKNOWN)
KNOWN: Final = CATEGORIES[:3]
