import numpy as np
import pytest
import torch

from app.domain.categories import Category
from app.training.outputs import CATEGORIES, STAGES
from app.training.prompt_detector.fitting import Features, calibrate, fit, logits_of
from app.training.prompt_detector.network import ConceptNetwork, Shape, masked_loss

SMALL = Shape(rank=2, hidden=16, narrow=8, dropout=0.0)
LAYERS, WIDTH = 2, 12


@pytest.fixture
def features():
    """Rows whose first dimension says whether they are unsafe."""
    chance = np.random.default_rng(3)
    labels = (np.arange(64) % 2).astype(np.float32)
    embeddings = chance.normal(size=(64, LAYERS, WIDTH)).astype(np.float16)
    embeddings[:, :, 0] += labels[:, None] * 3
    kinds = np.zeros((64, len(CATEGORIES)), np.float32)
    kinds[labels == 1, CATEGORIES.index(Category.HATE)] = 1
    both = np.stack([labels, np.where(np.arange(64) % 3 == 0, np.nan, labels)], axis=1)
    return Features(embeddings, np.arange(64), both.astype(np.float32), kinds)


@pytest.fixture
def concepts():
    return np.random.default_rng(4).normal(size=(5, LAYERS, WIDTH)).astype(np.float16)


def loss_of(network, features):
    with torch.inference_mode():
        unsafe, category = network(torch.from_numpy(features.embeddings).float())
        labels, kinds = torch.from_numpy(features.labels), torch.from_numpy(features.kinds)
        return masked_loss(unsafe, category, labels, kinds, torch.ones(len(labels))).item()


def test_each_step_lowers_the_loss(features, concepts):
    # One batch holds all rows: an epoch is a step.
    one, two, many = (
        loss_of(fit(features, concepts, shape=SMALL, seed=1, epochs=epochs), features)
        for epochs in (1, 2, 40)
    )
    assert many < two < one


def test_the_same_seed_gives_the_same_scores_and_another_one_does_not(features, concepts):
    first, again, other = (
        logits_of(fit(features, concepts, shape=SMALL, seed=seed, epochs=2), features)[0]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_folding_the_concept_bank_changes_nothing(features, concepts):
    network = fit(features, concepts, shape=SMALL, seed=1, epochs=2)
    folded = ConceptNetwork(network.features.fold(), network.heads)
    embeddings = torch.from_numpy(features.embeddings).float()
    with torch.inference_mode():
        for plain, short in zip(network(embeddings), folded(embeddings.flatten(1)), strict=True):
            torch.testing.assert_close(plain, short, atol=1e-4, rtol=1e-4)


def test_unknown_labels_do_not_pull(features):
    unsafe = torch.tensor([[1.0, -5.0]], requires_grad=True)
    category = torch.zeros(1, len(CATEGORIES), requires_grad=True)
    labels = torch.tensor([[0.0, torch.nan]])
    loss = masked_loss(unsafe, category, labels, torch.zeros(1, len(CATEGORIES)), torch.ones(1))
    loss.backward()
    assert unsafe.grad[0, 0] > 0
    assert unsafe.grad[0, 1] == 0
    assert not category.grad.any()


def test_a_text_scores_as_its_worst_window(features, concepts):
    network = fit(features, concepts, shape=SMALL, seed=1, epochs=1)
    single = logits_of(network, features)[0]
    joined = Features(
        features.embeddings, np.arange(64) // 2, features.labels[::2], features.kinds[::2]
    )
    np.testing.assert_array_equal(logits_of(network, joined)[0], single.reshape(32, 2, -1).max(1))


def test_calibrated_scores_are_shared_out_over_the_categories(features, concepts):
    network = fit(features, concepts, shape=SMALL, seed=1, epochs=120)
    calibrated = calibrate(network, [features])
    with torch.inference_mode():
        scores = calibrated(torch.from_numpy(features.embeddings).float().flatten(1))
    assert scores.shape == (64, len(STAGES) * len(CATEGORIES))
    assert scores.min() >= 0
    assert scores.max() <= 1
    on_input = scores[:, : len(CATEGORIES)]
    unsafe = torch.from_numpy(features.labels[:, 0]) == 1
    # The top category of a row carries the calibrated probability, and it is the right one.
    assert on_input.amax(1)[unsafe].mean() > 0.8
    assert on_input.amax(1)[~unsafe].mean() < 0.2
    assert (on_input[unsafe].argmax(1) == CATEGORIES.index(Category.HATE)).float().mean() > 0.9
