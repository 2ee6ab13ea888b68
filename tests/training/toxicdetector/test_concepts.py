from pathlib import Path

import numpy as np
import yaml

from app.training.toxicdetector.concepts import MOST, PAPER_SCENARIOS, augmented, load_bank


def vectors_of(angles):
    """Unit vectors in a plane: texts are angles in degrees."""
    radians = np.radians([float(angle) for angle in angles])
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_what_is_too_like_something_kept_is_dropped():
    # The cosine of 30 degrees is .87, that of 40 .77.
    angles = ("0", "30", "40", "60", "80")
    assert augmented(angles, vectors_of(angles)) == ("0", "40", "80")


def test_no_more_than_the_paper_keeps():
    angles = [str(45 * step) for step in range(8)]
    assert len(augmented(angles, vectors_of(angles))) == MOST


def test_the_concept_itself_is_always_kept(tmp_path):
    path = tmp_path / "bank.yaml"
    path.write_text(yaml.safe_dump({"some": {"concept": "10", "candidates": ["11", "99"]}}))
    assert load_bank(path, vectors_of) == {"some": ("10", "99")}


def test_the_shipped_bank_has_the_scenarios_of_the_paper_and_enough_candidates(pytestconfig):
    path = Path(pytestconfig.rootpath) / "models" / "toxicdetector" / "concepts.yaml"
    bank = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert len(bank) >= PAPER_SCENARIOS
    for entry in bank.values():
        sentences = [entry["concept"], *entry["candidates"]]
        assert len(set(sentences)) == len(sentences) >= MOST
