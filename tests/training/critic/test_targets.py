import pytest
import torch

from app.training.critic.fitting import padded
from app.training.critic.targets import HEAD, POLYAK, MonteCarlo, Sarsa, Steps, sarsa_goals
from tests.training.critic.tiny import tiny_critic, tiny_texts


def _steps(critic, count=6):
    texts = tiny_texts(count)
    ids, positions, judged = padded(texts)
    hidden = critic.read(ids, positions)
    risks = torch.tensor([text.risk for text in texts])
    return Steps(hidden[:, :-1], ids[:, 1:], judged, risks)


def test_sarsa_goals_are_those_worked_out_by_hand():
    values = torch.tensor([[-0.9, -0.2, -0.3, -0.4], [-0.5, -0.6, -0.7, -0.8]])
    judged = torch.tensor([[False, True, True, True], [True, True, False, False]])
    goals = sarsa_goals(values, judged, torch.tensor([0.75, 0.25]))
    assert goals[judged].tolist() == pytest.approx([-0.3, -0.4, -0.75, -0.6, -0.25])


def test_sarsa_goals_stay_between_minus_one_and_zero():
    values = torch.tensor([[-0.5, -1.5, 0.5, 0.0]])
    goals = sarsa_goals(values, torch.ones(1, 4, dtype=torch.bool), torch.tensor([1.0]))
    assert goals.tolist() == [[-1.0, 0.0, 0.0, -1.0]]


def test_the_loss_of_sarsa_is_the_squared_distance_to_the_slow_head():
    critic = tiny_critic()
    steps = _steps(critic)
    way = Sarsa(critic)
    with torch.no_grad():
        critic.value.outer.bias += 1.0  # only the critic's own head
        before = -torch.sigmoid(critic.logits_of(steps.states, steps.actions) - 1.0)
        goals = sarsa_goals(before, steps.judged, steps.risks)
        values = critic.q_of(steps.states, steps.actions)
    expected = ((values - goals)[steps.judged] ** 2).mean()
    assert way.loss(steps).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_slow_head_follows_by_its_share_and_shares_the_embedding():
    critic = tiny_critic()
    way = Sarsa(critic)
    before = {name: weight.clone() for name, weight in way.state().items()}
    with torch.no_grad():
        for name in HEAD:
            for weight in getattr(critic, name).parameters():
                weight.add_(1.0)
    way.moved()
    for name, weight in way.state().items():
        assert torch.allclose(weight, before[name] + POLYAK, atol=1e-6), name
    assert not any("embed" in name for name in way.state())


def test_no_gradient_flows_through_the_goals():
    critic = tiny_critic()
    way = Sarsa(critic)
    way.loss(_steps(critic)).backward()
    assert critic.value.outer.weight.grad is not None
    assert all(weight.grad is None for weight in way._head.value.parameters())
    assert critic.embed_tokens.weight.grad is None


def test_the_loss_of_monte_carlo_is_the_cross_entropy_of_the_soft_return():
    critic = tiny_critic()
    steps = _steps(critic)
    risk = -critic.q_of(steps.states, steps.actions)
    wanted = steps.risks[:, None]
    entropy = -(wanted * risk.log() + (1 - wanted) * (1 - risk).log())
    loss = MonteCarlo(critic).loss(steps)
    assert loss.item() == pytest.approx(entropy[steps.judged].mean().item(), rel=1e-4)


def test_prompts_and_padding_teach_nothing():
    critic = tiny_critic()
    steps = _steps(critic)
    poisoned = steps.states.masked_fill(~steps.judged[..., None], 7.0)
    changed = Steps(poisoned, steps.actions, steps.judged, steps.risks)
    for way in (MonteCarlo(critic), Sarsa(critic)):
        assert way.loss(changed).item() == pytest.approx(way.loss(steps).item(), rel=1e-6)
