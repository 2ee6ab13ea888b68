from app.training.toxicdetector.report import tables

FIGURES = {"f1": 0.5, "fpr": 0.25, "accuracy": 0.75, "auroc": None, "auprc": 0.125, "recall": 1.0}


def test_every_part_that_was_measured_has_its_table():
    facts = {
        "protocol": {
            "own": {"random": {"ours": FIGURES}},
            "others": {"some set": {"ours": FIGURES}},
        },
        "model": {"sets": {"other set": {"floor": FIGURES}}},
        "cost": {"16 words": {"chat": 1.5, "detector": 2.5, "both": 3.5, "added": 2.0, "mlp": 0.5}},
    }
    lines = tables(facts).splitlines()
    assert "| random | ours | 0.500 | 0.250 | 0.750 |  |" in lines
    assert "| published | ToxicDetector (SPC) | 0.964 | 0.019 | 0.976 | 0.990 |" in lines
    assert "| some set | ours |  | 0.125 | 1.000 | 0.250 |" in lines
    assert "| other set | floor |  | 0.125 | 1.000 | 0.250 |" in lines
    assert "| 16 words | 1.5 | 2.5 | 3.5 | 2.0 | 0.5 |" in lines


def test_what_was_not_measured_has_none():
    assert "Milliseconds" not in tables({"model": {"sets": {}}})
