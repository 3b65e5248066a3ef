"""Find fact spans with the named entities of a spaCy model (`--spans spacy:MODEL`; spaCy is an optional package)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from foreknow.data.spans.finder import AnswerText, Span, without_overlaps
from foreknow.errors import ConfigError, first_line

PREFIX: Final = "spacy:"
_TYPES: Final = {
    **dict.fromkeys(("DATE", "TIME"), "date"),
    **dict.fromkeys(("CARDINAL", "ORDINAL", "QUANTITY", "PERCENT", "MONEY"), "number"),
    **dict.fromkeys(
        ("PERSON", "PER", "ORG", "GPE", "LOC", "FAC", "NORP", "EVENT", "WORK_OF_ART", "LAW", "LANGUAGE", "PRODUCT"),
        "name",
    ),
}


class SpacyFinder:
    """Finds the entities of spaCy's model `model`. Entities of kinds not listed here (MISC, DISEASE) are terms.

    Raises ConfigError if spaCy or the model is not installed, or if the model finds no entities.
    """

    def __init__(self, model: str):
        self.name = PREFIX + model
        try:
            import spacy
        except ImportError:
            raise ConfigError(
                f"--spans {self.name}: spaCy is not installed; run pip install 'foreknow[spacy]', or use --spans rules"
            ) from None
        try:
            self.pipeline: Any = spacy.load(model)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(
                f"--spans {self.name}: spaCy cannot load the model {model!r}: {first_line(error)}; run python -m spacy "
                f"download {model}, or use --spans rules"
            ) from None
        if not {"ner", "entity_ruler", "span_ruler"} & set(self.pipeline.pipe_names):
            raise ConfigError(
                f"--spans {self.name}: found the parts {', '.join(self.pipeline.pipe_names) or 'none'}, expected one "
                "that finds entities (ner); name another model"
            )

    def find(self, texts: Sequence[AnswerText]) -> list[list[Span]]:
        """See `Finder.find`."""
        answers = (text.answer for text in texts)
        return [
            without_overlaps(
                Span(entity.start_char, entity.end_char, _TYPES.get(entity.label_, "term")) for entity in document.ents
            )
            for document in self.pipeline.pipe(answers)
        ]
