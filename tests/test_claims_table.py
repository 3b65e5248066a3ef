"""The table of the nine claims in the docs, which benchmarks/claims.py makes of the committed studies."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from foreknow import paper

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("claims")


def test_the_docs_have_the_table_that_the_committed_studies_give(
    claims: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = tmp_path / "claims.svg"
    monkeypatch.setattr(
        sys, "argv", ["claims.py", "--studies", str(REPOSITORY / "docs" / "studies"), "--picture", str(drawn)]
    )
    claims.main()
    table = capsys.readouterr().out.strip()
    assert table in (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
    committed = (REPOSITORY / "docs" / "images" / "claims.svg").read_text(encoding="utf-8")
    for text in (*claims.SHORT.values(), *claims.STUDIES):
        assert text in committed
        assert text in drawn.read_text(encoding="utf-8")


def test_every_figure_of_a_claim_has_the_papers_beside_it(claims: Any) -> None:
    found = claims.evidence_of([REPOSITORY / "docs" / "studies" / name for name in claims.STUDIES["Gemma 3 270M"]])
    for number, one in found.items():
        assert {part.name for part in one.parts} == set(paper.contrast(number))


def test_the_papers_figures_are_those_that_it_states() -> None:
    parts = {number: paper.contrast(number) for number in range(1, 10)}
    assert parts[4] == {"b_kn test": 0.073, "b_unk test": -0.083}
    assert parts[6]["MaybeKnown - HighlyKnown"] == pytest.approx(0.436 - 0.405)
    assert parts[8]["D_Known - D at CONVERGENCE"] == pytest.approx(-parts[2]["D - D_Known at CONVERGENCE"])
    assert list(parts[7].values()) == [0.032]
