import pytest
import torch
from torch import nn

from app.training.toxicdetector.network import (
    Network,
    Shape,
    fold,
    inner_features,
    product_features,
)

SHAPE = Shape(widths=(6, 5, 4, 3))
ROWS, SIZE, CONCEPTS = 12, 8, 5


@pytest.fixture
def embeddings():
    return torch.randn(ROWS, SIZE, generator=torch.Generator().manual_seed(1)) * 3 + 2


@pytest.fixture
def concepts():
    return torch.randn(CONCEPTS, SIZE, generator=torch.Generator().manual_seed(2))


class OnProducts(nn.Module):
    """The network as the paper draws it: products, standardised, then all of the first layer."""

    def __init__(self, network, weight, embeddings, concepts):
        super().__init__()
        products = product_features(embeddings, concepts)
        self.mean, self.scale = products.mean(0), products.std(0, correction=0)
        self.concepts = concepts
        self.weight = nn.Parameter(weight)
        self.rest = network

    def forward(self, embeddings):
        features = (product_features(embeddings, self.concepts) - self.mean) / self.scale
        hidden = features @ self.weight.T + self.rest.linears[0].bias
        hidden = torch.relu(self.rest.norms[0](hidden))
        for linear, norm in list(zip(self.rest.linears, self.rest.norms, strict=True))[1:]:
            hidden = torch.relu(norm(linear(hidden)))
        return self.rest.toxic(hidden).squeeze(1)


def networks(embeddings, concepts):
    """The folded network and the one on products, with the same weights."""
    pair = []
    for _ in range(2):
        torch.manual_seed(3)
        pair.append(Network(embeddings.mean(0), embeddings.std(0, correction=0), SHAPE))
    weight = torch.randn(6, CONCEPTS * SIZE) * 0.1
    with torch.no_grad():
        pair[0].linears[0].weight.copy_(fold(weight, concepts))
    return pair[0], OnProducts(pair[1], weight, embeddings, concepts)


def test_folding_equals_the_product(embeddings, concepts):
    folded, long = networks(embeddings, concepts)
    torch.testing.assert_close(folded(embeddings)[0], long(embeddings))


def test_training_the_folded_network_equals_training_on_products(embeddings, concepts):
    folded, long = networks(embeddings, concepts)
    labels = (torch.arange(ROWS) % 2).float()
    before = folded(embeddings)[0].detach()
    optimisers = (
        torch.optim.Adam(folded.groups(0.01, CONCEPTS), lr=0.01),
        torch.optim.Adam([p for p in long.parameters() if p is not long.rest.linears[0].weight]),
    )
    optimisers[1].param_groups[0]["lr"] = 0.01
    for _ in range(3):
        for optimiser, logits in zip(
            optimisers, (folded(embeddings)[0], long(embeddings)), strict=True
        ):
            optimiser.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
            optimiser.step()
    after = folded(embeddings)[0].detach()
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(after, long(embeddings).detach(), atol=1e-3, rtol=1e-3)


def test_categories_come_from_the_second_hidden_layer(embeddings):
    network = Network(embeddings.mean(0), embeddings.std(0), Shape((6, 5, 4, 3), categories=7))
    toxic, category = network(embeddings)
    assert toxic.shape == (ROWS,)
    assert category.shape == (ROWS, 7)


def test_a_dimension_that_never_varies_is_no_infinity():
    network = Network(torch.zeros(SIZE), torch.zeros(SIZE), SHAPE)
    assert network(torch.zeros(2, SIZE))[0].isfinite().all()


def test_inner_products_keep_the_likeliest_concept_of_each_scenario():
    embeddings = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # one text, two layers
    concepts = torch.tensor(
        [[[3.0, 0.0], [0.0, -1.0]], [[1.0, 0.0], [0.0, 5.0]], [[-1.0, 0.0]] * 2]
    )
    found = inner_features(embeddings, concepts, [2, 1])
    assert found.tolist() == [[3.0, 10.0, -1.0, 0.0]]
