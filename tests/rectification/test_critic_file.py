from __future__ import annotations

import json
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file

from app.domain.errors import ConfigurationError, ModelCorrupt, ModelMissing
from app.rectification.critic_file import CARD, WEIGHTS, read_critic, write_critic

MATRIX = torch.tensor([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0], [3e-4, 1e-4, -2e-4]])
VECTOR = torch.tensor([0.123456789, -7.0])


@pytest.fixture
def folder(tmp_path):
    write_critic(tmp_path, {"layers": 2}, {"matrix": MATRIX, "vector": VECTOR})
    return tmp_path


def test_each_row_keeps_its_own_precision(folder) -> None:
    shape, weights = read_critic(folder)

    assert shape == {"layers": 2}
    assert set(weights) == {"matrix", "vector"}
    torch.testing.assert_close(weights["vector"], VECTOR, atol=0, rtol=0)
    half_a_step = MATRIX.abs().amax(1, keepdim=True) / 127 / 2 * 1.001
    assert ((weights["matrix"] - MATRIX).abs() <= half_a_step).all()


def test_matrices_take_one_byte_a_weight(folder) -> None:
    stored = load_file(folder / WEIGHTS)

    assert stored["matrix"].dtype == torch.int8
    assert stored["matrix.scale"].shape == (3,)


def test_the_rest_of_a_card_stays(folder) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"name": "critic", "files": {"a.png": "0"}}))

    write_critic(folder, {"layers": 3}, {"vector": VECTOR})

    card = json.loads((folder / CARD).read_text())
    digest = sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert card == {
        "name": "critic",
        "shape": {"layers": 3},
        "files": {"a.png": "0", WEIGHTS: digest},
    }


def test_a_changed_file_is_corrupt(folder) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)

    with pytest.raises(ModelCorrupt):
        read_critic(folder)


def test_a_card_without_digests_is_believed(folder) -> None:
    (folder / CARD).write_text(json.dumps({"shape": {"layers": 2}}))

    assert set(read_critic(folder)[1]) == {"matrix", "vector"}


def test_a_file_of_something_else_is_corrupt(folder) -> None:
    (folder / CARD).write_text(json.dumps({"shape": {}}))
    (folder / WEIGHTS).write_bytes(b"something else")

    with pytest.raises(ModelCorrupt):
        read_critic(folder)


@pytest.mark.parametrize("name", [CARD, WEIGHTS])
def test_a_missing_file_is_told(folder, name) -> None:
    (folder / name).unlink()

    with pytest.raises(ModelMissing):
        read_critic(folder)


@pytest.mark.parametrize(
    "card", ["{", "[]", "{}", '{"shape": 3}', '{"shape": {}, "files": {"other": "0"}}']
)
def test_a_card_of_something_else_is_refused(folder, card) -> None:
    (folder / CARD).write_text(card)

    with pytest.raises(ConfigurationError):
        read_critic(folder)


def test_weights_that_are_no_numbers_are_not_written(tmp_path) -> None:
    with pytest.raises(ValueError, match="matrix"):
        write_critic(tmp_path, {}, {"matrix": MATRIX * torch.nan})

    assert not (tmp_path / WEIGHTS).exists()
