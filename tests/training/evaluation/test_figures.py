from app.training.evaluation.figures import figures
from app.training.evaluation.judging import Judgement
from app.training.evaluation.sets import Row


def test_figures_of_scores_and_of_decisions():
    rows = [Row(str(n), "x", unsafe=n >= 2) for n in range(4)]
    judged = [Judgement(0.1, False), Judgement(0.4, True, failed=True)]
    judged += [Judgement(0.3, False), Judgement(0.9, True)]
    found = figures(rows, judged)
    assert (found.auroc, found.recall, found.precision, found.fpr) == (0.75, 0.5, 0.5, 0.5)
    assert (found.tpr_at_fpr_1, found.failed, found.labels) == (None, 1, {})


def test_labels_with_enough_rows_and_languages_get_their_own_figures():
    rows = [Row(str(n), "x", unsafe=n < 10, labels=("often",), language="en") for n in range(20)]
    rows += [Row("z", "x", unsafe=True, labels=("rare", "often"), language="de")]
    judged = [Judgement(1.0, n < 5 or n == 10) for n in range(21)]
    found = figures(rows, judged).labels
    assert set(found) == {"often", "language: en"}
    assert (found["language: en"].rows, found["language: en"].recall) == (20, 0.5)
    assert (found["often"].unsafe, found["often"].fpr) == (11, 0.1)
