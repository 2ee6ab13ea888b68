from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.errors import ConfigurationError
from app.rectification.critic_model import Critic, CriticShape
from tests.rectification.random_critic import SHAPE, random_critic

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what a library says about itself when it is imported
    from transformers import LlamaConfig, LlamaModel

TEXT = torch.tensor([[7, 1, 30, 30, 2, 45, 19, 8, 0, 11]])
LENGTH = TEXT.shape[1]
PLACES = torch.arange(LENGTH)[None]


@pytest.fixture(scope="module")
def critic():
    return random_critic()


@pytest.fixture(scope="module")
def language_model():
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=SHAPE.vocabulary,
        hidden_size=SHAPE.hidden,
        intermediate_size=SHAPE.intermediate,
        num_hidden_layers=3,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        max_position_embeddings=SHAPE.context,
        rms_norm_eps=1e-5,
        initializer_range=0.3,
    )
    model = LlamaModel(config).eval()
    with torch.no_grad():
        for block in model.layers:
            block.input_layernorm.weight.normal_(mean=1.0, std=0.2)
            block.post_attention_layernorm.weight.normal_(mean=1.0, std=0.2)
    return model


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_blocks_are_the_first_ones_of_a_llama(language_model, layers, prefix) -> None:
    config = json.loads(language_model.config.to_json_string())
    critic = Critic(CriticShape.of_config(config, layers=layers, rank=4))
    weights = {prefix + name: weight for name, weight in language_model.state_dict().items()}

    critic.start_from(weights)

    with torch.no_grad():
        expected = language_model(TEXT, output_hidden_states=True).hidden_states[layers]
        close(critic.read(TEXT, PLACES), expected)


def test_a_language_model_of_another_shape_is_refused(language_model) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        random_critic(intermediate=16).start_from(language_model.state_dict())
    with pytest.raises(KeyError):
        random_critic(layers=4).start_from(language_model.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("cuts", [[1] * LENGTH, [3, 1, 6], [LENGTH]])
def test_a_text_in_pieces_is_read_as_the_whole(critic, cuts) -> None:
    state = critic.empty_state()
    pieces = zip(TEXT.split(cuts, 1), PLACES.split(cuts, 1), strict=True)

    read = [critic.read(tokens, places, state) for tokens, places in pieces]

    close(torch.cat(read, dim=1), critic.read(TEXT, PLACES))


@torch.no_grad()
@pytest.mark.parametrize("with_state", [False, True])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_padding_anywhere_changes_nothing(critic, with_state, data) -> None:
    lengths = data.draw(st.lists(st.integers(1, LENGTH), min_size=1, max_size=4))
    tokens, places = torch.full((len(lengths), 14), 9), torch.full((len(lengths), 14), -1)
    for row, length in enumerate(lengths):
        where = torch.randperm(14)[:length].sort().values
        tokens[row, where], places[row, where] = TEXT[0, :length], PLACES[0, :length]

    hidden = critic.read(tokens, places, critic.empty_state() if with_state else None)

    assert hidden.isfinite().all()
    for row, length in enumerate(lengths):
        close(hidden[row, places[row] >= 0], critic.read(TEXT, PLACES)[0, :length])


@torch.no_grad()
def test_after_left_padding_rows_go_on_at_their_own_positions(critic) -> None:
    state = critic.empty_state()
    padded = torch.tensor([[9, 9, 7, 1, 30], [7, 1, 30, 30, 2]])

    critic.read(padded, torch.tensor([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4]]), state)
    hidden = critic.read(torch.tensor([[30], [45]]), torch.tensor([[3], [5]]), state)

    whole = critic.read(TEXT, PLACES)[0]
    close(hidden[:, 0], whole[[3, 5]])


@torch.no_grad()
def test_tokens_taken_back_leave_no_trace(critic) -> None:
    state = critic.empty_state()
    critic.read(TEXT.flip(1), PLACES, state)

    critic.read(TEXT[:, :3], PLACES[:, :3], state)
    hidden = critic.read(TEXT[:, 3:], PLACES[:, 3:], state)

    close(hidden, critic.read(TEXT, PLACES)[:, 3:])


@torch.no_grad()
def test_chosen_rows_of_a_state_are_read_in_any_order(critic) -> None:
    state = critic.empty_state()
    critic.read(TEXT[:, :4], PLACES[:, :4], state, [5])
    critic.read(TEXT[:, :2], PLACES[:, :2], state, [1])

    hidden = critic.read(TEXT[0, [4, 2], None], torch.tensor([[4], [2]]), state, [5, 1])

    close(hidden[:, 0], critic.read(TEXT, PLACES)[0, [4, 2]])


@torch.no_grad()
def test_a_token_sees_only_as_far_back_as_the_context() -> None:
    critic = random_critic(layers=1, context=4)
    other = TEXT.clone()
    other[0, 5] = 33

    close(critic.read(TEXT, PLACES)[:, 9:], critic.read(other, PLACES)[:, 9:])
    assert not torch.allclose(critic.read(TEXT, PLACES)[:, 8], critic.read(other, PLACES)[:, 8])


@torch.no_grad()
def test_the_context_is_the_same_when_read_in_pieces() -> None:
    critic, state = random_critic(context=4), random_critic().empty_state()

    read = [critic.read(TEXT[:, i : i + 1], PLACES[:, i : i + 1], state) for i in range(LENGTH)]

    close(torch.cat(read, dim=1), critic.read(TEXT, PLACES))


@pytest.mark.parametrize("rows", [1, 2, 8, 9])
def test_values_are_those_of_the_formula(critic, rows) -> None:
    hidden = torch.randn(rows, SHAPE.hidden)
    normed = critic.norm(hidden)
    tokens = critic.embed_tokens.weight @ critic.token_direction.weight.t()
    products = critic.state_direction(normed) @ tokens.t()
    expected = -torch.sigmoid(critic.value(normed) + products)

    close(critic.q_values(hidden), expected)
    close(critic.q_values(hidden[0]), expected[0])
    with torch.no_grad():  # the other way, with what is kept
        close(critic.q_values(hidden), expected)
        close(critic.q_values(hidden[:, None]), expected[:, None])
        assert critic.q_values(hidden).is_contiguous()


def test_values_of_taken_tokens_are_those_among_all(critic) -> None:
    hidden, taken = torch.randn(3, 5, SHAPE.hidden), torch.randint(0, SHAPE.vocabulary, (3, 5))

    expected = critic.q_values(hidden).gather(-1, taken[..., None])[..., 0]

    close(critic.q_of(hidden, taken), expected)
    close(-critic.logits_of(hidden, taken).sigmoid(), expected)


@torch.no_grad()
@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False),
        min_size=SHAPE.hidden,
        max_size=SHAPE.hidden,
    )
)
def test_values_are_probabilities_whatever_the_state(critic, numbers) -> None:
    hidden = torch.tensor([numbers])

    q_values = critic.q_values(hidden)

    assert ((q_values >= -1) & (q_values <= 0)).all()
    assert ((critic.q_of(hidden, torch.tensor([4])) + 0.5).abs() <= 0.5).all()


@torch.no_grad()
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_state_that_is_no_number_is_as_risky_as_can_be(critic, broken) -> None:
    hidden = torch.zeros(1, SHAPE.hidden)
    hidden[0, 3] = broken

    assert (critic.q_values(hidden) == -1).all()


def test_an_untrained_critic_makes_no_difference_between_tokens() -> None:
    q_values = Critic(SHAPE).q_values(torch.randn(2, SHAPE.hidden))

    assert (q_values == q_values[:, :1]).all()


def test_it_learns_from_padded_texts_and_the_embedding_stays() -> None:
    torch.manual_seed(1)
    critic = random_critic().train()
    embedding = critic.embed_tokens.weight.clone()
    tokens = torch.randint(0, SHAPE.vocabulary, (6, 8))
    places = torch.arange(-2, 6).clamp(min=-1).expand(6, 8)
    unsafe = torch.tensor([0.0, 1.0] * 3)[:, None].expand(6, 7)
    optimizer = torch.optim.Adam([p for p in critic.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(12):
        logits = critic.logits_of(critic.read(tokens, places)[:, :-1], tokens[:, 1:])
        errors = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, unsafe, reduction="none"
        )
        loss = errors[places[:, :-1] >= 0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0] / 2
    assert torch.equal(critic.embed_tokens.weight, embedding)
    trained = {name for name, p in critic.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in critic.named_parameters()} - {"embed_tokens.weight"}


@torch.no_grad()
def test_new_weights_give_new_values() -> None:
    critic, hidden = random_critic(), torch.randn(1, SHAPE.hidden)
    before = critic.q_values(hidden)

    critic.train()
    critic.token_direction.weight.mul_(2)
    critic.eval()
    trained = critic.q_values(hidden)
    critic.load_state_dict(random_critic().state_dict())

    assert not torch.allclose(trained, before)
    close(critic.q_values(hidden), before)


@torch.no_grad()
def test_recalibration_moves_the_logits(critic) -> None:
    moved, hidden = random_critic(), torch.randn(2, SHAPE.hidden)

    moved.recalibrate(0.7, -1.5)

    expected = -torch.sigmoid(0.7 * torch.logit(-critic.q_values(hidden).double()) - 1.5)
    close(moved.q_values(hidden).double(), expected)


@torch.no_grad()
def test_a_saved_critic_judges_like_the_one_that_was_saved(critic, tmp_path) -> None:
    critic.save(tmp_path)

    loaded = Critic.load(tmp_path)

    assert loaded.shape == critic.shape
    assert not loaded.training
    assert not loaded.embed_tokens.weight.requires_grad
    q_values = loaded.q_values(loaded.read(TEXT, PLACES))
    expected = critic.q_values(critic.read(TEXT, PLACES))
    assert (q_values - expected).abs().max() < 0.05
    loaded.save(tmp_path / "again")  # what int8 holds already is not rounded once more
    again = Critic.load(tmp_path / "again")
    close(again.q_values(again.read(TEXT, PLACES)), q_values)


@pytest.mark.parametrize("change", [{"rank": 7}, {"heads": 3}, {"heads": "four"}])
def test_a_card_of_another_shape_is_refused(critic, tmp_path, change) -> None:
    critic.save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(card | {"shape": asdict(SHAPE) | change}))

    with pytest.raises(ConfigurationError):
        Critic.load(tmp_path)


@pytest.mark.parametrize("change", [{"heads": 5}, {"kv_heads": 3}, {"heads": 32, "kv_heads": 32}])
def test_heads_must_divide_what_they_share(change) -> None:
    with pytest.raises(ValueError, match="heads"):
        replace(SHAPE, **change)
