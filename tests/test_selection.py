"""Which epoch is kept, and what is said of the choice: every way the numbers can come out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foreknow.stages.train import selection
from foreknow.stages.train.curves import Line


def lines(ems: list[float], losses: list[float] | None = None) -> list[Line]:
    """One evaluation an epoch with this dev EM, and dev loss."""
    found: list[Line] = []
    for n, em in enumerate(ems):
        line: Line = {
            "epoch": n + 1, "step": 10 * (n + 1), "train_loss": 1.0, "fitted": {}, "em": {"dev": em},
            "em_lenient": {}, "em_by_category": {},
        }  # fmt: skip
        if losses:
            line["loss"] = {"dev": losses[n]}
        found.append(line)
    return found


def paired(curve: list[Line], rows: int) -> list[Line]:
    """The same with `paired`, as if each epoch's right rows held all of those of an epoch with a lower EM."""
    done: list[Line] = []
    for line in curve:
        leader = selection.best(done, "dev_em")
        if leader is not None:
            gain = round(rows * (line["em"]["dev"] - leader["em"]["dev"]))
            done.append({**line, "paired": {"step": leader["step"], "won": max(gain, 0), "lost": max(-gain, 0)}})
        else:
            done.append(line)
    return done


def chosen(curve: list[Line], metric: str = "dev_em") -> tuple[int, str]:
    leader = selection.best(curve, metric)
    assert leader is not None
    return leader["epoch"], selection.chooser(curve, metric)


def test_the_metric_chooses_where_it_differs() -> None:
    curve = lines([0.1, 0.4, 0.3], [1.0, 2.0, 0.5])
    assert chosen(curve) == (2, "metric")
    assert selection.format_choice(curve, "dev_em") == "it has the best dev EM, 40.0%"


def test_a_tie_at_every_epoch_leaves_the_choice_to_the_loss() -> None:
    curve = lines([0.0, 0.0, 0.0], [3.0, 2.5, 2.7])
    assert chosen(curve) == (2, "tie")
    assert selection.format_choice(curve, "dev_em") == (
        "dev EM is 0.0% at every epoch and chooses none; this one has the lowest dev loss 2.500"
    )


def test_a_tie_without_a_loss_chooses_nothing_and_earns_no_star() -> None:
    curve = lines([0.0, 0.0])
    assert chosen(curve) == (1, "nothing")
    assert selection.mark_of(curve[:1], "dev_em") == ""
    assert selection.mark_of(curve, "dev_em") == ""
    assert "the earliest is kept" in selection.format_choice(curve, "dev_em")


def test_equal_values_of_two_epochs_leave_the_choice_between_them_to_the_loss() -> None:
    assert chosen(lines([0.1, 0.4, 0.4], [3.0, 2.0, 1.9])) == (3, "chance")
    assert chosen(lines([0.1, 0.4, 0.4], [3.0, 1.9, 2.0])) == (2, "chance")
    assert chosen(lines([0.1, 0.4, 0.4])) == (2, "chance")


def test_a_difference_that_the_rows_cannot_show_leaves_the_choice_to_the_loss() -> None:
    """Of 20 rows, 3 more are right: p = 0.25. Of 200 rows, 30 more are right: p < 0.05."""
    curve = lines([0.30, 0.45, 0.30], [2.0, 2.4, 1.8])
    assert chosen(paired(curve, 20)) == (3, "chance")
    assert "which its rows cannot tell from other epochs" in selection.format_choice(paired(curve, 20), "dev_em")
    assert chosen(paired(curve, 200)) == (2, "metric")


def test_the_loss_chooses_where_it_is_the_metric() -> None:
    curve = lines([0.5, 0.1, 0.1], [2.0, 1.5, 1.7])
    assert chosen(curve, "dev_loss") == (2, "loss")
    assert selection.format_choice(curve, "dev_loss") == "it has the lowest dev loss, 1.500"


def test_one_epoch_is_no_choice() -> None:
    assert selection.format_choice(lines([0.3], [1.0]), "dev_em") == "it is the only epoch"
    assert selection.best([], "dev_em") is None


@pytest.mark.parametrize(
    ("curve", "mark"),
    [
        (lines([0.1, 0.2], [2.0, 2.5]), "best"),
        (lines([0.2, 0.1], [2.0, 1.5]), ""),
        (lines([0.0, 0.0], [2.0, 1.5]), "lowest loss"),
        (lines([0.0, 0.0], [1.5, 2.0]), ""),
    ],
)
def test_the_mark_says_what_chose(curve: list[Line], mark: str) -> None:
    assert selection.mark_of(curve, "dev_em") == mark


def test_evaluations_within_an_epoch_are_never_kept() -> None:
    early = {**lines([0.9])[0], "epoch": 0.5}
    assert chosen([early, *lines([0.1, 0.4, 0.3])]) == (2, "metric")


def test_patience_counts_epochs_without_one_to_keep() -> None:
    curve = lines([0.1, 0.4, 0.3, 0.4])
    assert not selection.out_of_patience(curve, "dev_em", 0)
    assert not selection.out_of_patience(curve, "dev_em", 3)
    assert selection.out_of_patience(curve, "dev_em", 2)
    assert selection.out_of_patience(lines([0.0] * 3, [1.0, 2.0, 3.0]), "dev_em", 2)
    assert not selection.out_of_patience(lines([0.0] * 3, [3.0, 2.0, 1.0]), "dev_em", 2)


SHARES = st.sampled_from([0.0, 0.1, 0.2])
EPOCHS = st.lists(st.tuples(SHARES, st.sampled_from([1.0, 1.5, 2.0])), min_size=1, max_size=8)


@given(EPOCHS)
def test_no_epoch_beats_the_kept_one(epochs: list[tuple[float, float]]) -> None:
    curve = lines([em for em, _ in epochs], [loss for _, loss in epochs])
    leader = selection.best(curve, "dev_em")
    assert leader is not None
    best = max(em for em, _ in epochs)
    assert leader["em"]["dev"] == best
    assert leader["loss"]["dev"] == min(loss for em, loss in epochs if em == best)


@given(EPOCHS)
def test_there_is_a_sentence_for_every_outcome(epochs: list[tuple[float, float]]) -> None:
    for curve in (lines([em for em, _ in epochs]), paired(lines(*map(list, zip(*epochs, strict=True))), 40)):
        kind = selection.chooser(curve, "dev_em")
        assert selection.format_choice(curve, "dev_em")
        assert kind in ("metric", "tie", "chance", "nothing")
        assert (kind in ("tie", "nothing")) == (len(curve) > 1 and len({line["em"]["dev"] for line in curve}) == 1)


def test_an_epoch_that_the_loss_chose_is_not_called_the_best_by_the_metric_though_it_has_the_highest_value() -> None:
    """Of 32 rows, 5, 7 and 6 are right: no difference that they can show."""
    curve = paired(lines([5 / 32, 7 / 32, 6 / 32], [2.32, 2.28, 2.38]), 32)
    assert chosen(curve) == (2, "chance")
    assert "which its rows cannot tell from other epochs; dev loss 2.280 chose it" in selection.format_choice(
        curve, "dev_em"
    )
    assert selection.mark_of(curve[:2], "dev_em") == "lowest loss"
    clear = paired(lines([10 / 200, 60 / 200, 20 / 200], [2.3, 2.2, 2.4]), 200)
    assert chosen(clear) == (2, "metric")
