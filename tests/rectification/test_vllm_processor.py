import sys
from abc import ABC
from importlib.util import module_from_spec, spec_from_file_location
from random import Random
from types import ModuleType

import pytest
import torch

import app.rectification.vllm_processor as module
from app.rectification.critic_model import Critic
from app.rectification.critic_rows import CriticRows
from app.rectification.hf_processor import Rectifier
from app.rectification.rectify import caps_of
from app.rectification.sampling import Sampling
from app.rectification.steering import Control
from app.rectification.vllm_policy import PREFIX, sampling_of
from app.rectification.vllm_processor import Rectification
from tests.rectification.fake_values import VOCABULARY, FakeValues
from tests.rectification.fake_vllm import (
    FirstRunner,
    Request,
    SecondRunner,
    config,
    drawn_from,
    params,
)
from tests.rectification.tiny_critic import tiny_critic

DEVICE = torch.device("cpu")
HARM = 0.8  # the sharpest cap is 0.2: there is always a safe distribution


class WithFakes(Rectification):
    """The processor, its critic replaced."""

    @staticmethod
    def load(folder, device, vocabulary):
        return FakeValues(HARM)


@pytest.fixture(autouse=True)
def _server(monkeypatch):
    for name, value in {"CRITIC": "critic", "MODE": "cap", "MODES": "off,tilt,tilt_cap"}.items():
        monkeypatch.setenv(PREFIX + name, value)


def request(random):
    asked = {"rectification_mode": random.choice(["off", "cap", "tilt", "tilt_cap"])}
    if random.random() < 0.7:
        asked |= {"rectification_epsilon": random.random() / 5, "rectification_beta": 4.0}
    chosen = params(
        extra_args=random.choice([None, asked, asked]),
        temperature=random.choice([0.0, 0.7, 1.0, 1.3]),
        top_p=random.choice([1.0, 1.0, 0.8]),
        top_k=random.choice([0, 1, 20]),
    )
    return Request(chosen, [random.randrange(VOCABULARY) for _ in range(random.randint(1, 6))])


def check_row(before, after, one, policy, values=None):
    """A row is what the transformers path makes of the same tensors."""
    control = policy.control_of(one.params)
    sampling = sampling_of(one.params)
    text = [*one.prompt, *one.output]
    if control.mode == "off":
        assert torch.equal(before, after)
        return
    values = values or FakeValues(HARM)
    alone = Rectifier(values, control, -1, Sampling(sampling.temperature))
    expected = alone(torch.tensor([text]), before[None])[0].softmax(-1)
    if sampling.kept == 1 and sampling.top_k == 0:
        torch.testing.assert_close((after / sampling.divisor).softmax(-1), expected)
        assert torch.equal(before, after) == (not alone.trace[0].changed)
    if control.mode in {"cap", "tilt_cap"} and not sampling.greedy:
        caps = caps_of(values.q_values({"row": text})[0], control.epsilon)
        assert bool((drawn_from(after, one.params) <= caps + 1e-5).all())


def logits_of(rows, random):
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    return 4 * torch.randn(rows, VOCABULARY, generator=generator)


def churn(runner, random, steps, values=None):
    for _ in range(steps):
        rows = len(runner.rows)
        gone = random.sample(range(rows), random.choice([0, 0, min(1, rows), rows // 2]))
        new = [request(random) for _ in range(random.choice([0, 0, 1, 3]))]
        left = rows - len(gone) + len(new)
        swapped = [random.sample(range(left), 2)] if left > 1 and random.random() < 0.5 else []
        runner.change(gone, new, swapped)
        if not runner.rows:
            continue
        spoken = [len(one.output) for one in runner.rows]
        logits = logits_of(len(runner.rows), random)
        tokens = [random.randrange(VOCABULARY) for _ in runner.rows]
        result = runner.step(logits, tokens)
        for row, one in enumerate(runner.rows):
            before = Request(one.params, one.prompt, one.output[: spoken[row]])
            check_row(logits[row], result[row], before, runner.processor._policy, values)


@pytest.mark.parametrize("placeholders", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_first_runner_rows_are_right_under_random_churn(seed, placeholders):
    processor = WithFakes(config(VOCABULARY, async_scheduling=placeholders), DEVICE, False)
    churn(FirstRunner(processor, placeholders), Random(seed), 40)
    alive = {one.key for one in processor._requests.values()}
    assert processor._values.known <= alive  # nothing is kept of texts that ended


def test_churn_with_a_critic_from_its_folder(monkeypatch, tmp_path):
    tiny_critic(VOCABULARY).save(tmp_path)
    monkeypatch.setenv(PREFIX + "CRITIC", str(tmp_path))
    processor = Rectification(config(VOCABULARY), DEVICE, False)
    churn(FirstRunner(processor), Random(5), 15, CriticRows(Critic.load(tmp_path)))


def test_a_critic_with_another_vocabulary_is_refused(monkeypatch, tmp_path):
    tiny_critic(VOCABULARY + 1).save(tmp_path)
    monkeypatch.setenv(PREFIX + "CRITIC", str(tmp_path))
    with pytest.raises(ValueError, match="same vocabulary"):
        Rectification(config(VOCABULARY), DEVICE, False)


@pytest.mark.parametrize("seed", range(3))
def test_second_runner_rows_are_right_under_random_churn(seed):
    random = Random(seed)
    runner = SecondRunner(slots=6, longest=64)
    processor = runner.processor = WithFakes(config(VOCABULARY), runner.state)
    for _ in range(40):
        for slot in random.sample(range(6), random.choice([0, 0, 1, 2])):
            one = request(random)
            if slot in runner.slots and random.random() < 0.5:
                one = runner.slots[slot]  # it had to make room and comes back with its output
            steered = runner.add(slot, one)
            assert steered == (processor._policy.control_of(one.params).mode != "off")
        order = [slot for slot in runner.slots if random.random() < 0.8]
        random.shuffle(order)
        if not order or max(runner.lengths.values()) > 60:
            continue
        logits = logits_of(len(order), random)
        requests = [runner.slots[slot] for slot in order]
        before = [Request(one.params, one.prompt, list(one.output)) for one in requests]
        result = runner.step(order, logits, [random.randrange(VOCABULARY) for _ in order])
        for row, one in enumerate(before):
            check_row(logits[row], result[row], one, processor._policy)


def test_an_idle_processor_touches_nothing(monkeypatch):
    monkeypatch.delenv(PREFIX + "CRITIC")
    processor = WithFakes(config(VOCABULARY, named=None), DEVICE, False)
    runner = FirstRunner(processor)
    runner.change(new=[Request(params(), [1, 2])])
    logits = torch.zeros(1, VOCABULARY)
    assert torch.equal(runner.step(logits, [3]), logits)
    assert not processor.add_request(0, params())
    Rectification.validate_params(params(min_p=0.5))  # not ours to refuse


def test_the_second_of_two_instances_for_one_server_is_idle():
    shared = config(VOCABULARY)
    first = WithFakes(shared, DEVICE, False)
    second = WithFakes(shared, DEVICE, False)
    assert first._policy is not None
    assert second._policy is None
    assert WithFakes(config(VOCABULARY), DEVICE, False)._policy is not None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"speculative": object()}, "speculative"),
        ({"prompt_embeds": True}, "embeddings"),
        ({"named": None, "async_scheduling": True}, "--logits-processors"),
    ],
)
def test_a_server_that_could_not_be_steered_does_not_start(settings, says):
    with pytest.raises(ValueError, match=says):
        WithFakes(config(VOCABULARY, **settings), DEVICE, False)


def test_the_second_runner_asks_for_the_flag_because_it_validates_by_it_alone():
    with pytest.raises(ValueError, match="--logits-processors"):
        WithFakes(config(VOCABULARY, named=[]), SecondRunner(1, 1).state)


def test_a_processor_that_is_asked_for_by_name_needs_a_critic(monkeypatch):
    monkeypatch.delenv(PREFIX + "CRITIC")
    with pytest.raises(ValueError, match="no critic"):
        WithFakes(config(VOCABULARY), DEVICE, False)


def test_a_placeholder_that_was_not_filled_in_is_never_guessed():
    processor = WithFakes(config(VOCABULARY), DEVICE, False)
    one = Request(params(), [1, 2])
    FirstRunner(processor).change(new=[one])
    one.output.append(-1)
    with pytest.raises(RuntimeError, match="placeholders"):
        processor.apply(torch.zeros(1, VOCABULARY))


def test_output_that_was_taken_back_is_followed():
    processor = WithFakes(config(VOCABULARY), DEVICE, False)
    runner, random = FirstRunner(processor), Random(0)
    one = Request(params(), [1, 2])
    runner.change(new=[one])
    for token in (3, 4, 5):
        runner.step(logits_of(1, random), [token])
    del one.output[1:]
    logits = logits_of(1, random)
    result = runner.step(logits, [9])
    check_row(logits[0], result[0], Request(one.params, [1, 2], [3]), processor._policy)


@pytest.mark.parametrize(("eos", "end"), [(1, 1), ([7, 8], 7), ([], None), (None, None)])
def test_a_row_in_a_dead_end_ends(monkeypatch, eos, end):
    monkeypatch.setenv(PREFIX + "EPSILON", "1.0")
    processor = WithFakes(config(VOCABULARY, eos=eos), DEVICE, False)
    runner = FirstRunner(processor)
    runner.change(new=[Request(params(), [1, 2])])
    result = runner.step(torch.zeros(1, VOCABULARY), [3])[0].softmax(-1)
    if end is None:
        assert float(result.max()) < 1
    else:
        assert float(result[end]) == 1.0


def test_admission_refuses_what_the_policy_refuses():
    with pytest.raises(ValueError, match="min_p"):
        Rectification.validate_params(params(min_p=0.5))
    Rectification.validate_params(params())


def test_it_says_of_itself_what_the_runners_ask():
    processor = WithFakes(config(VOCABULARY), DEVICE, False)
    assert not processor.is_argmax_invariant()
    assert processor.needs_output_token_ids()


def test_with_vllm_installed_it_is_a_subclass_of_both_interfaces(monkeypatch):
    bases = []
    for name in module._INTERFACES:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            parent = ".".join(parts[:depth])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        bases.append(type("LogitsProcessor", (ABC,), {}))
        sys.modules[name].LogitsProcessor = bases[-1]
    spec = spec_from_file_location("fresh_vllm_processor", module.__file__)
    fresh = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, fresh)
    spec.loader.exec_module(fresh)
    assert all(issubclass(fresh.Rectification, base) for base in bases)


def test_control_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv(PREFIX + "EPSILON", "0.3")
    processor = WithFakes(config(VOCABULARY), DEVICE, False)
    assert processor._policy.control == Control("cap", epsilon=0.3)
