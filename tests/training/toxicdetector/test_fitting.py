import numpy as np
import pytest
import torch

from app.inference.states_mlp import StatesMlp
from app.training.toxicdetector.fitting import Recipe, Rows, calibrate, fit, logits_of
from app.training.toxicdetector.network import Shape
from app.training.toxicdetector.shipping import export

SHAPE = Shape(widths=(12, 10, 8, 6), categories=3)
LAYERS, HIDDEN = 2, 6


@pytest.fixture
def rows():
    """Texts whose first dimension says whether they are toxic; the toxic ones are of kind 1."""
    chance = np.random.default_rng(3)
    toxic = (np.arange(64) % 2).astype(np.float32)
    embeddings = chance.normal(size=(64, LAYERS, HIDDEN)).astype(np.float16)
    embeddings[:, :, 0] += (toxic * 2)[:, None]
    kinds = np.zeros((64, 3), np.float32)
    kinds[toxic == 1, 1] = 1
    return Rows(embeddings, np.arange(64), toxic, kinds)


def trained(rows, epochs, seed=1, rate=1e-3):
    recipe = Recipe(rate=rate, epochs=epochs, batch=64)
    return fit(rows, shape=SHAPE, recipe=recipe, concepts=5, seed=seed)


def loss_of(network, rows):
    logits = torch.from_numpy(logits_of(network, rows)[0]).float()
    labels = torch.from_numpy(rows.toxic)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).item()


def test_each_step_lowers_the_loss(rows):
    # One batch holds all rows: an epoch is a step.
    none, two, many = (loss_of(trained(rows, epochs), rows) for epochs in (0, 2, 40))
    assert many < two < none


def test_the_same_seed_gives_the_same_numbers_and_another_one_does_not(rows):
    first, again, other = (logits_of(trained(rows, 3, seed), rows)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_text_scores_as_its_worst_window(rows):
    network = trained(rows, 5)
    single, _ = logits_of(network, rows)
    joined = Rows(rows.embeddings, np.arange(64) // 2, rows.toxic[::2], rows.kinds[::2])
    np.testing.assert_array_equal(logits_of(network, joined)[0], single.reshape(32, 2).max(1))


def test_the_exported_file_scores_as_the_network(rows, tmp_path):
    network = trained(rows, 60, rate=0.01)
    calibration = calibrate(network, [rows])
    export(network, calibration, tmp_path / "weights.npz")
    mlp = StatesMlp(tmp_path / "weights.npz")
    scores = np.stack([mlp.scores(row.astype(np.float32)) for row in rows.embeddings])
    probability = calibration.probability(logits_of(network, rows)[0])
    np.testing.assert_allclose(scores.max(axis=1), probability, atol=0.02)
    assert (scores[rows.toxic == 1].argmax(axis=1) == 1).mean() > 0.9
    assert scores.max(axis=1)[rows.toxic == 1].mean() > 0.7
    assert scores.max(axis=1)[rows.toxic == 0].mean() < 0.3
