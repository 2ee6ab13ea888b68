import pytest

from app.rectification.sampling import Sampling
from app.rectification.steering import Control
from app.rectification.vllm_policy import PREFIX, ServerPolicy, sampling_of
from tests.rectification.fake_vllm import params


def policy(**variables):
    named = {"CRITIC": "critic", "EPSILON": "0.2", **variables}
    return ServerPolicy.read({PREFIX + name: value for name, value in named.items()})


def asking(**extra_args):
    return params(extra_args={f"rectification_{name}": one for name, one in extra_args.items()})


def test_without_a_critic_there_is_no_policy():
    assert ServerPolicy.read({PREFIX + "MODE": "nonsense"}) is None


def test_a_request_that_asks_for_nothing_gets_the_servers_control():
    server = policy(MODE="tilt_cap", BETA="5", GATE="0.1", TOP_K="30")
    expected = Control("tilt_cap", epsilon=0.2, beta=5.0, top_k=30, gate=0.1)
    assert server.control_of(params()) == expected
    assert server.control_of(params(extra_args={"another_plugin": 1})) == expected


def test_a_request_may_only_ask_for_more():
    server = policy(EPSILON_MAX="0.6")
    assert server.control_of(asking(epsilon=0.4)).epsilon == 0.4
    assert server.control_of(asking(epsilon=0)).epsilon == 0.2
    assert server.control_of(asking(epsilon=1.0)).epsilon == 0.6


def test_a_request_may_choose_among_the_modes_of_the_server_only():
    server = policy(MODES="tilt, tilt_cap")
    assert server.control_of(asking(mode="tilt")).mode == "tilt"
    assert server.control_of(params()).mode == "cap"
    with pytest.raises(ValueError, match="not allowed"):
        server.control_of(asking(mode="off"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": "0.5"},
        {"epsilon": True},
        {"epsilon": float("nan")},
        {"epsilon": -0.1},
        {"epsilon": 1.5},
        {"beta": float("inf")},
        {"beta": [1.0]},
        {"mode": "loose"},
        {"mode": ["cap"]},
        {"gate": 1.0},
        {"top_k": 1},
        {"bias": 3},
    ],
)
def test_what_is_malformed_or_unknown_is_refused(wrong):
    with pytest.raises(ValueError, match="rectification"):
        policy().check(asking(**wrong))


@pytest.mark.parametrize(
    "undoing",
    [
        {"logit_bias": {5: 50.0}},
        {"min_p": 0.1},
        {"presence_penalty": -1.0},
        {"frequency_penalty": 0.5},
        {"repetition_penalty": 1.1},
        {"top_p": 0.4},
        {"top_k": 5},
        {"logprobs": 5},
        {"logprobs": 0},
        {"prompt_logprobs": 1},
    ],
)
def test_what_would_undo_or_reveal_the_control_is_refused(undoing):
    name = next(iter(undoing))
    with pytest.raises(ValueError, match=name):
        policy().check(params(**undoing))
    policy(MODE="off").check(params(**undoing))  # nothing to undo


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"temperature": 0.0, "top_p": 0.1},
        {"top_k": 1},
        {"top_k": -1},
        {"temperature": 1.7, "top_p": 0.9, "top_k": 40},
        {"logit_bias": {}},
    ],
)
def test_ordinary_sampling_is_fine(fine):
    policy().check(params(**fine))


def test_the_server_may_show_log_probabilities():
    policy(LOGPROBS="true").check(params(logprobs=5))


@pytest.mark.parametrize(
    "variables", [{"EPSILON": "high"}, {"MODE": "loose"}, {"EPSILON_MAX": "0.1"}, {"GATE": "7"}]
)
def test_a_wrong_environment_is_refused(variables):
    with pytest.raises(ValueError):  # noqa: PT011 - each says something else
        policy(**variables)


def test_the_sampling_of_a_request():
    asked = params(temperature=0.5, top_k=-1, top_p=0.9)
    assert sampling_of(asked) == Sampling(0.5, 0, 0.9)
