from collections.abc import Iterator

import pytest
import torch

from tests.training.critic.tiny import tiny_language_model
from tests.training.evaluation.rectification.tiny import tiny_writers


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    return tiny_language_model(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def writers(weights):
    return tiny_writers(weights)


@pytest.fixture
def prompts(writers):
    return [writers.layout.tokens(text) for text in ("hello pipe", "you are a worthless")]
