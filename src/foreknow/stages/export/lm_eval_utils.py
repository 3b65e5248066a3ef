"""What lm-evaluation-harness calls for the tasks in this folder: it reads their rows and judges the answers.

`foreknow export lm-eval` copied this file here. It needs nothing of foreknow, and judges as foreknow does:

* an answer is the generated text up to its first line break, without blanks at both ends;
* `exact_match`: the answer equals an accepted one letter by letter, whichever way Unicode spells the letters (NFC);
* `exact_match_lenient`: case, punctuation, articles and runs of blanks do not count either;
* `exact_match_in_audit`: what the audit found for the same prompt. It does not depend on the model asked now.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

ARTICLES = ("a", "an", "the")
TATWEEL = "\u0640"  # stretches an Arabic word in print
SELECTORS = re.compile("[\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # the form of the character before


def read_rows(file: str, **_: Any) -> dict[str, Any]:
    """Read a JSONL file that lies beside this one, as the split `test`.

    Texts stay texts: the JSON reader of `datasets` would take a column of dates for times.
    """
    from datasets import Dataset

    with (Path(__file__).parent / file).open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Judge the answer to one row. `doc`: the row. `results`: the generated text, alone in a list."""
    answer = answer_of(results[0])
    accepted = [text for text in doc["answers"] if text.strip()]
    judged = {
        "exact_match": float(strict_form(answer) in {strict_form(text) for text in accepted}),
        "exact_match_lenient": float(lenient_form(answer) in {lenient_form(text) for text in accepted}),
    }
    if doc.get("exact_match_in_audit") is not None:
        judged["exact_match_in_audit"] = float(doc["exact_match_in_audit"])
    return judged


def answer_of(generated: str) -> str:
    """Return the text before the first line break, without blanks at both ends."""
    return generated.split("\n", 1)[0].strip()


def strict_form(text: str) -> str:
    """Return the text without blanks at both ends, every accent in one character with its letter (NFC)."""
    return unicodedata.normalize("NFC", text.strip())


def lenient_form(text: str) -> str:
    """Return the text in lower case, without punctuation, symbols, articles and characters that nobody sees.

    A text of which nothing else would be left keeps what can be seen of it.
    """
    folded = unicodedata.normalize("NFKC", strict_form(text)).casefold()
    words = "".join(c for c in folded if c.isspace() or not (is_punctuation(c) or is_invisible(c))).split()
    without_articles = " ".join(word for word in words if word not in ARTICLES)
    visible = " ".join("".join(c for c in folded if not is_invisible(c)).split())
    return without_articles or visible or " ".join(folded.split())


def is_punctuation(character: str) -> bool:
    """Return whether a character is punctuation or a symbol."""
    return unicodedata.category(character)[0] in "PS"


def is_invisible(character: str) -> bool:
    """Return whether nobody sees a character by itself."""
    return unicodedata.category(character) == "Cf" or character == TATWEEL or bool(SELECTORS.match(character))
