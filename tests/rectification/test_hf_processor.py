import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from app.rectification.critic_rows import CriticRows
from app.rectification.hf_processor import Rectifier
from app.rectification.rectify import caps_of
from app.rectification.sampling import Sampling
from app.rectification.steering import Control
from tests.rectification.fake_values import VOCABULARY, FakeValues, q_of
from tests.rectification.tiny_critic import tiny_critic

PAD, END = 0, 1
PROMPTS = [[PAD, PAD, 5, 6], [7, 8, 9, 10], [PAD, 11, 12, 13]]
NEW = 8


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(60)  # a model that is sure of itself: caps have something to do
    return model


def generate(model, rectifier, prompts=PROMPTS, *, seed=0, **options):
    ids = torch.tensor(prompts)
    torch.manual_seed(seed)
    return model.generate(
        input_ids=ids,
        attention_mask=(ids != PAD).long(),
        logits_processor=[rectifier] if rectifier else None,
        return_dict_in_generate=True,
        output_scores=True,
        **({"max_new_tokens": NEW, "min_new_tokens": NEW} | options),
    )


def texts_at(result, step):
    """What the critic must have read before the step."""
    length = result.sequences.shape[1] - NEW + step
    for row in result.sequences[:, :length].tolist():
        start = next(at for at, token in enumerate(row) if token != PAD)
        yield row[start:]


def worst_violation(result, control, harm=1.0):
    worst = -1.0
    for step, scores in enumerate(result.scores):
        q_values = torch.stack([q_of(text, harm) for text in texts_at(result, step)])
        caps = caps_of(q_values, control.epsilon)
        worst = max(worst, float((scores.softmax(-1) - caps).max()))
    return worst


@pytest.mark.parametrize("mode", ["cap", "tilt_cap"])
@pytest.mark.parametrize("copies", [1, 3])
def test_what_is_sampled_obeys_the_caps_with_temperature_and_top_p(model, mode, copies):
    control = Control(mode, epsilon=0.05, beta=2.0)
    sampling = Sampling(temperature=0.7, top_p=0.9)
    rectifier = Rectifier(FakeValues(), control, PAD, sampling)
    result = generate(model, rectifier, num_return_sequences=copies, **rectifier.settings)
    plain = generate(model, None, do_sample=True, temperature=0.7, top_p=0.9, top_k=0)
    assert sum(trace.dead_ends for trace in rectifier.trace) == 0
    assert any(trace.changed for trace in rectifier.trace)
    assert worst_violation(result, control) <= 1e-6
    assert worst_violation(plain, control) > 0.1  # there was something to rectify


@pytest.mark.parametrize("control", [Control("off"), Control("tilt_cap", beta=9.0, gate=1.0)])
def test_an_unsteered_text_is_the_one_that_generate_would_have_sampled(model, control):
    rectifier = Rectifier(FakeValues(), control, PAD, Sampling(0.7, top_k=20, top_p=0.9))
    result = generate(model, rectifier, seed=3, **rectifier.settings)
    plain = generate(model, None, seed=3, do_sample=True, temperature=0.7, top_k=20, top_p=0.9)
    assert torch.equal(result.sequences, plain.sequences)
    for ours, theirs in zip(result.scores, plain.scores, strict=True):
        torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1))
    assert [trace.steps for trace in rectifier.trace] == [NEW] * len(PROMPTS)
    assert not any(trace.changed for trace in rectifier.trace)


def test_greedy_takes_the_best_of_what_the_caps_allow(model):
    control = Control("cap", epsilon=0.05)
    rectifier = Rectifier(FakeValues(), control, PAD, Sampling(temperature=0.0))
    result = generate(model, rectifier, **rectifier.settings)
    plain = generate(model, None, do_sample=False)
    assert worst_violation(result, control) <= 1e-6
    for step, scores in enumerate(result.scores):
        chosen = result.sequences[:, step - NEW]
        assert torch.equal(chosen, scores.argmax(-1))
    assert not torch.equal(result.sequences, plain.sequences)


def test_padding_and_the_rows_beside_it_do_not_matter_to_a_row(model):
    settings = {"control": Control("cap"), "pad_token_id": PAD, "sampling": Sampling(0.0)}
    rectifier = Rectifier(FakeValues(), **settings)
    together = generate(model, rectifier, **rectifier.settings).sequences[:, -NEW:]
    for row, prompt in enumerate(PROMPTS):
        alone = Rectifier(FakeValues(), **settings)
        text = [[token for token in prompt if token != PAD]]
        result = generate(model, alone, text, **alone.settings).sequences[:, -NEW:]
        assert torch.equal(result[0], together[row])
        assert alone.trace[0].changed == rectifier.trace[row].changed
        assert alone.trace[0].moved == pytest.approx(rectifier.trace[row].moved, abs=1e-4)


def test_a_real_critic_reads_what_the_rows_say(model):
    critic = tiny_critic(VOCABULARY)
    settings = {"control": Control("cap"), "pad_token_id": PAD, "sampling": Sampling(0.0)}
    together = Rectifier(CriticRows(critic), **settings)
    result = generate(model, together, **together.settings).sequences[:, -NEW:]
    for row, prompt in enumerate(PROMPTS):
        alone = Rectifier(CriticRows(critic), **settings)
        text = [[token for token in prompt if token != PAD]]
        assert torch.equal(
            generate(model, alone, text, **alone.settings).sequences[0, -NEW:], result[row]
        )
    assert any(trace.changed for trace in together.trace)


def test_a_second_generation_with_the_same_instance_starts_anew(model):
    values = FakeValues()
    rectifier = Rectifier(values, Control("cap"), PAD, Sampling(0.0))
    first = generate(model, rectifier, **rectifier.settings)
    trace = rectifier.trace
    again = generate(model, rectifier, **rectifier.settings)
    assert torch.equal(first.sequences, again.sequences)
    assert rectifier.trace == trace
    assert rectifier.trace is not trace
    generate(model, rectifier, PROMPTS[:1], **rectifier.settings)
    assert len(rectifier.trace) == 1
    assert values.known == {0}  # the other rows of the generation before are forgotten


def test_a_text_that_only_looks_like_the_next_step_starts_anew():
    rectifier = Rectifier(FakeValues(), Control("cap"), PAD)
    scores = torch.zeros(1, VOCABULARY)
    rectifier(torch.tensor([[5, 6]]), scores)
    rectifier(torch.tensor([[5, 6, 7]]), scores)
    assert rectifier.trace[0].steps == 2
    rectifier(torch.tensor([[9, 9, 9, 9]]), scores)
    assert rectifier.trace[0].steps == 1


def test_the_trace_counts_positions_of_new_tokens_and_stops_with_the_text():
    rectifier = Rectifier(FakeValues(), Control("tilt", beta=5.0), PAD)
    scores = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[PAD, 5], [6, 7]])
    for newest in ([3, 4], [END, 4], [PAD, 4], [PAD, 4]):
        rectifier(ids, scores)
        ids = torch.cat([ids, torch.tensor([newest]).T], 1)
    assert rectifier.trace[0].changed == [0, 1, 2]
    assert rectifier.trace[1].changed == [0, 1, 2, 3]
    assert [trace.steps for trace in rectifier.trace] == [3, 4]
    assert rectifier.trace[1].moved > 0


def test_a_row_in_a_dead_end_ends_where_an_end_is_known():
    hopeless = Control("cap", epsilon=1.0)
    scores = torch.zeros(1, VOCABULARY)
    ids = torch.tensor([[5, 6]])
    ending = Rectifier(FakeValues(), hopeless, PAD, end_token_id=END)
    assert int(ending(ids, scores).argmax()) == END
    assert ending.trace[0].dead_ends == 1
    going_on = Rectifier(FakeValues(), hopeless, PAD)
    probabilities = going_on(ids, scores).softmax(-1)
    assert float(probabilities.max()) < 0.5


def test_a_row_of_nothing_but_padding_is_still_a_text():
    rectifier = Rectifier(FakeValues(), Control("cap"), PAD)
    assert rectifier(torch.tensor([[PAD, PAD]]), torch.zeros(1, VOCABULARY)).shape == (
        1,
        VOCABULARY,
    )


def test_when_it_is_off_the_critic_is_not_asked():
    values = FakeValues()
    Rectifier(values, Control("off"), PAD)(torch.tensor([[5]]), torch.zeros(1, VOCABULARY))
    assert values.calls == 0
