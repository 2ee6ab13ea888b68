from collections.abc import Iterator

import pytest
import torch

from tests.training.critic.tiny import tiny_language_model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory):
    return tiny_language_model(tmp_path_factory.mktemp("language-model"))
