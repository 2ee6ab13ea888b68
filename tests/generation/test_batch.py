from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from app.domain.errors import UpstreamError
from app.generation.batch import Batch
from app.generation.llama import Llama
from app.generation.request import Delta, Sampling
from app.generation.text import Vocabulary
from tests.generation.recorder import ask, run

LONG = tuple(3 + (7 * index) % 250 for index in range(300))  # several pieces of prefill
PROMPTS = ((5, 6, 7), tuple(range(40, 100)), (200,), LONG)
POISON = 255


class PoisonedLlama(Llama):
    """Does something to its scores when a row reads the poison."""

    def __init__(self, model: Llama, poison: Callable[[Tensor, Tensor], None]) -> None:
        self.__dict__.update(model.__dict__)
        self._poison = poison

    def forward(self, token_ids: Tensor, *rest: object) -> Tensor:
        scores = super().forward(token_ids, *rest)
        rows = (token_ids == POISON).any(-1)
        if rows.any():
            self._poison(scores, rows)
        return scores


class BreakableLlama(Llama):
    """Fails while it is told to."""

    def __init__(self, model: Llama) -> None:
        self.__dict__.update(model.__dict__)
        self.broken = False

    def forward(self, *args: object) -> Tensor:
        if self.broken:
            raise MemoryError
        return super().forward(*args)


def refuse(scores: Tensor, rows: Tensor) -> None:
    raise RuntimeError("out of something")


def spoil(scores: Tensor, rows: Tensor) -> None:
    scores[rows] = float("nan")


@pytest.fixture
def make_batch(tiny: Llama, tiny_tokenizer: Tokenizer) -> Callable[..., Batch]:
    def make(
        model: Llama = tiny,
        stop_ids: tuple[int, ...] = (),
        max_rows: int = 4,
        kept_tokens: int = 0,
    ) -> Batch:
        return Batch(model, Vocabulary(tiny_tokenizer), stop_ids, max_rows, kept_tokens)

    return make


def alone(make_batch: Callable[..., Batch], prompt: tuple[int, ...], **extra: object) -> str:
    listener = ask(prompt, **extra)
    run(make_batch(), listener)
    return listener.text()


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_equals_transformers(
    make_batch: Callable[..., Batch],
    reference: LlamaForCausalLM,
    tiny_tokenizer: Tokenizer,
    prompt: tuple[int, ...],
) -> None:
    prompt_ids = torch.tensor([prompt])
    generated = reference.generate(
        prompt_ids,
        attention_mask=torch.ones_like(prompt_ids),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
    )[0, len(prompt) :]
    vocabulary = Vocabulary(tiny_tokenizer)
    whole = b"".join(vocabulary[token] for token in generated.tolist())

    # The tail may be half a character, which is never released.
    assert whole.decode(errors="replace").startswith(alone(make_batch, prompt))
    assert len(alone(make_batch, prompt)) > 5


def test_mates_that_join_one_after_the_other_change_nothing(
    make_batch: Callable[..., Batch],
) -> None:
    listeners = [ask(prompt) for prompt in PROMPTS]

    run(make_batch(), *listeners)

    assert [one.text() for one in listeners] == [alone(make_batch, prompt) for prompt in PROMPTS]
    assert all(one.finish_reasons == ["length"] for one in listeners)


def test_joining_and_leaving_midway_changes_nothing(make_batch: Callable[..., Batch]) -> None:
    lengths = (30, 4, 11, 7)
    listeners = [
        ask(prompt, tokens) for prompt, tokens in zip(PROMPTS * 2, lengths * 2, strict=True)
    ]

    run(make_batch(max_rows=3), *listeners)

    for listener in listeners:
        prompt, tokens = listener.request.prompt_ids, listener.request.max_tokens
        assert listener.text() == alone(make_batch, prompt, tokens=tokens)


def test_the_stop_token_ends_a_text_and_is_not_shown(
    make_batch: Callable[..., Batch], tiny_tokenizer: Tokenizer, reference: LlamaForCausalLM
) -> None:
    prompt_ids = torch.tensor([PROMPTS[1]])
    third = int(
        reference.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            max_new_tokens=3,
            do_sample=False,
            eos_token_id=None,
        )[0, -1]
    )
    listener = ask(PROMPTS[1])

    run(make_batch(stop_ids=(third,)), listener)

    assert listener.finish_reasons == ["stop"]
    assert listener.deltas[-1].tokens <= 3
    assert alone(make_batch, PROMPTS[1]).startswith(listener.text())


def test_a_stop_string_across_tokens_ends_a_text(make_batch: Callable[..., Batch]) -> None:
    whole = ask(PROMPTS[1], 40)
    run(make_batch(), whole)
    shown = [delta.text for delta in whole.deltas if delta.text]
    stop = shown[4][-1] + shown[5][:1]  # the end of one delta and the beginning of the next
    listener = ask(PROMPTS[1], 40, stop=(stop,))

    run(make_batch(), listener)

    assert listener.text() == whole.text()[: whole.text().index(stop)]
    assert listener.finish_reasons == ["stop"]


def test_tokens_are_counted(make_batch: Callable[..., Batch]) -> None:
    listener = ask(PROMPTS[0], 9)

    run(make_batch(), listener)

    assert listener.deltas[-1] == Delta(0, listener.deltas[-1].text, 9, "length")


def test_choices_share_a_prompt_and_are_reproducible(make_batch: Callable[..., Batch]) -> None:
    sampling = Sampling(temperature=1.5, seed=3)
    first, again = (ask(LONG, choices=3, sampling=sampling) for _ in range(2))

    run(make_batch(), first)
    run(make_batch(), ask(PROMPTS[0], 40), again)  # with a mate this time

    texts = [first.text(choice) for choice in range(3)]
    assert len(set(texts)) == 3
    assert texts == [again.text(choice) for choice in range(3)]
    assert len(first.finish_reasons) == 3


def test_greedy_choices_are_the_same(make_batch: Callable[..., Batch]) -> None:
    listener = ask(PROMPTS[1], choices=2)

    run(make_batch(), listener)

    assert listener.text(0) == listener.text(1) == alone(make_batch, PROMPTS[1])


def test_who_left_is_out_at_the_next_step(make_batch: Callable[..., Batch]) -> None:
    batch, leaver, stayer = make_batch(max_rows=2), ask(PROMPTS[0], 400), ask(PROMPTS[1])
    batch.start(leaver)
    batch.step()
    batch.start(stayer)
    batch.step()
    assert not batch.has_room(leaver.request)

    leaver.cancelled = True
    seen = len(leaver.deltas)
    batch.step()

    assert batch.has_room(leaver.request)
    assert len(leaver.deltas) == seen
    run(batch)
    assert stayer.text() == alone(make_batch, PROMPTS[1])


def test_who_left_while_its_prompt_was_read_is_forgotten(make_batch: Callable[..., Batch]) -> None:
    batch, leaver = make_batch(), ask(LONG)
    batch.start(leaver)
    batch.step()
    assert batch.busy

    leaver.cancelled = True
    batch.step()

    assert not batch.busy
    assert leaver.deltas == []


def test_a_row_with_impossible_scores_fails_alone(
    make_batch: Callable[..., Batch], tiny: Llama
) -> None:
    batch = make_batch(PoisonedLlama(tiny, spoil))
    bad, good = ask((5, POISON)), ask(PROMPTS[1])

    run(batch, bad, good)

    assert isinstance(bad.errors[0], UpstreamError)
    assert bad.deltas == []
    assert good.text() == alone(make_batch, PROMPTS[1])
    assert good.errors == []


def test_a_prompt_that_breaks_the_model_fails_alone(
    make_batch: Callable[..., Batch], tiny: Llama
) -> None:
    batch = make_batch(PoisonedLlama(tiny, refuse))
    first, bad, last = ask(PROMPTS[0]), ask((5, POISON)), ask(PROMPTS[1])

    run(batch, first, bad, last)

    assert isinstance(bad.errors[0], UpstreamError)
    assert first.text() == alone(make_batch, PROMPTS[0])
    assert last.text() == alone(make_batch, PROMPTS[1])


def test_a_step_that_breaks_the_model_answers_all_and_the_next_one_works(
    make_batch: Callable[..., Batch], tiny: Llama
) -> None:
    batch = make_batch(BreakableLlama(tiny))
    running = [ask(PROMPTS[0]), ask(PROMPTS[1])]
    for listener in running:
        batch.start(listener)
        batch.step()

    batch._model.broken = True
    batch.step()
    batch._model.broken = False

    assert all(isinstance(one.errors[0], UpstreamError) for one in running)
    assert not batch.busy
    after = ask(PROMPTS[1])
    run(batch, after)
    assert after.text() == alone(make_batch, PROMPTS[1])


def test_the_error_of_a_failed_request_holds_no_text(
    make_batch: Callable[..., Batch], tiny: Llama
) -> None:
    bad = ask((5, POISON))

    run(make_batch(PoisonedLlama(tiny, refuse)), bad)

    assert "out of something" not in str(bad.errors[0])


class CountingLlama(Llama):
    """Counts the tokens that it reads."""

    def __init__(self, model: Llama) -> None:
        self.__dict__.update(model.__dict__)
        self.tokens = 0

    def forward(self, token_ids: Tensor, *rest: object) -> Tensor:
        self.tokens += token_ids.numel()
        return super().forward(token_ids, *rest)


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_a_prompt_that_was_read_is_not_read_again(
    make_batch: Callable[..., Batch], tiny: Llama, prompt: tuple[int, ...]
) -> None:
    model = CountingLlama(tiny)
    batch = make_batch(model, kept_tokens=512)
    reading, chat = ask(prompt, 0, choices=0), ask(prompt, 20)

    run(batch, reading)
    assert model.tokens == len(prompt)
    run(batch, chat)

    assert model.tokens == len(prompt) + 19  # the first token comes from the reading
    assert chat.text() == alone(make_batch, prompt)
    assert reading.deltas == []
    assert torch.equal(reading.states[0], chat.states[0])


def test_a_prompt_that_begins_like_another_is_read_from_there(
    make_batch: Callable[..., Batch], tiny: Llama
) -> None:
    model = CountingLlama(tiny)
    batch = make_batch(model, kept_tokens=512)
    longer = (*LONG, 9, 8, 7)

    run(batch, ask(LONG, 0, choices=0))
    before = model.tokens
    chat = ask(longer, 20)
    run(batch, chat)

    assert model.tokens - before == 3 + 19
    assert chat.text() == alone(make_batch, longer)
    fresh = ask(longer, 1)
    run(make_batch(), fresh)
    torch.testing.assert_close(chat.states[0], fresh.states[0], atol=1e-3, rtol=1e-3)


def test_the_states_are_those_of_transformers(
    make_batch: Callable[..., Batch], reference: LlamaForCausalLM
) -> None:
    reading = ask(PROMPTS[1], 0, choices=0)
    run(make_batch(), reading)

    layers = reference(torch.tensor([PROMPTS[1]]), output_hidden_states=True).hidden_states
    # The last of theirs is normalised, and the first is the embedding.
    torch.testing.assert_close(
        reading.states[0][:-1],
        torch.stack([each[0, -1] for each in layers[1:-1]]),
        atol=1e-4,
        rtol=1e-4,
    )


def test_a_reading_takes_no_row(make_batch: Callable[..., Batch]) -> None:
    batch, chat = make_batch(max_rows=1), ask(PROMPTS[0], 400)
    batch.start(chat)
    batch.step()
    reading = ask(PROMPTS[1], 0, choices=0)
    assert batch.has_room(reading.request)

    batch.start(reading)
    batch.step()

    assert len(reading.states) == 1
    assert not chat.finish_reasons


def test_impossible_scores_are_not_kept(make_batch: Callable[..., Batch], tiny: Llama) -> None:
    batch = make_batch(PoisonedLlama(tiny, spoil), kept_tokens=512)
    run(batch, ask((5, 6, POISON)))
    good = ask((5, 6, POISON - 1))

    run(batch, good)

    assert good.text() == alone(make_batch, (5, 6, POISON - 1))
    assert batch._prefixes.get((5, 6, POISON)) is None
