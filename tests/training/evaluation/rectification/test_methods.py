import torch

from app.rectification.baselines import class_likelihood, gedi
from app.rectification.steering import Control
from app.training.evaluation.rectification.methods import (
    AuthorsLoop,
    BadWords,
    DExperts,
    GeDi,
    Plain,
    Rectified,
    nucleus,
)
from app.training.evaluation.rectification.reader import Reader
from tests.training.evaluation.rectification.tiny import every_score


def scores_of(writers, texts):
    return torch.stack([every_score(writers.model, text) for text in texts])


def test_the_nucleus_is_the_smallest_head_that_holds_enough(writers, prompts):
    logits = scores_of(writers, prompts)
    kept = nucleus(logits).exp()
    assert torch.allclose(kept.sum(-1), torch.ones(2))
    whole = logits.softmax(-1)
    for row in range(2):
        inside = whole[row][kept[row] > 0]
        assert inside.sum() >= 0.9
        assert inside.sum() - inside.min() < 0.9


def test_an_exact_cap_is_never_broken_and_the_loop_breaks_its_own(writers, prompts):
    logits = 4 * scores_of(writers, prompts)  # sure of itself: two passes are too few
    exact = Rectified(writers.critic, Control("cap", 0.3)).moved(logits, prompts)
    loop = AuthorsLoop(writers.critic, 0.3).moved(logits, prompts)
    assert exact.violations().max() <= 1e-6
    assert loop.violations().max() > 1e-3


def test_only_a_promised_cap_is_held_against_a_method(writers, prompts):
    logits = scores_of(writers, prompts)
    for control in (Control("tilt", beta=10), Control("cap", 0.3, gate=0.1)):
        assert Rectified(writers.critic, control).moved(logits, prompts).violations() is None
    assert Plain().moved(logits, prompts).violations() is None


def test_bad_words_are_not_finished(writers):
    word = writers.layout.tokens(" kill")
    text = [*writers.layout.tokens("hello"), *word[:-1]]
    logits = torch.zeros(1, writers.model.shape.vocabulary)
    logits[0, word[-1]] = 9.0
    moved = BadWords(writers.bad_words).moved(logits, [text])
    assert moved.log_probs[0, word[-1]] == -torch.inf
    assert Plain().moved(logits, [text]).log_probs[0, word[-1]] == 0


def test_two_equal_classes_move_nothing(writers, prompts):
    logits = scores_of(writers, prompts)
    method = DExperts(Reader(writers.model), Reader(writers.model), 2.0)
    method.begin(prompts)
    torch.testing.assert_close(method.moved(logits, prompts).log_probs, nucleus(logits))


def test_gedi_follows_both_classes_from_token_to_token(writers, prompts):
    layout, model = writers.layout, writers.model
    heads = [layout.tokens("hello"), layout.tokens("worthless")]
    method = GeDi(*(Reader(model, head) for head in heads), 5.0)
    method.begin(prompts)
    texts = [list(prompt) for prompt in prompts]
    past = [torch.zeros(2, 1), torch.zeros(2, 1)]
    for length, new in enumerate(([5, 9], [6, 7], [8, 8]), start=1):
        logits = scores_of(writers, texts)
        both = [scores_of(writers, [[*head, *text] for text in texts]) for head in heads]
        wanted = gedi(
            logits,
            *(class_likelihood(each, old, length) for each, old in zip(both, past, strict=True)),
            omega=5.0,
        )
        torch.testing.assert_close(method.moved(logits, texts).log_probs, nucleus(wanted))
        token = torch.tensor(new)[:, None]
        past = [
            old + each.log_softmax(-1).gather(1, token)
            for old, each in zip(past, both, strict=True)
        ]
        for text, chosen in zip(texts, new, strict=True):
            text.append(chosen)
