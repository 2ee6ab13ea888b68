import pytest
import torch

from app.training.critic.rollouts import (
    STOPS,
    Amount,
    Ask,
    LanguageModelAuthor,
    draw,
    write_rollouts,
)

PROMPTS = [[10, 11], [12], [13, 14, 15], [16, 17], [18, 19, 20, 21]]


class Author:
    """Writes the prompt's first token and the seed, and remembers what it was asked."""

    def __init__(self, dies_after: int = 100) -> None:
        self.asked = []
        self._left = dies_after

    def write(self, prompts, ask):
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        self.asked.append(ask)
        row = ask.seed % 1000
        return [[[prompt[0], row, sample] for sample in range(ask.samples)] for prompt in prompts]


def _written(path, author, prompts=PROMPTS, seed=1):
    amount = Amount(2, 5, 9)
    return write_rollouts(prompts, amount, cache=path, author=lambda: author, rows=4, seed=seed)


def test_every_prompt_gets_its_rollouts_in_order(tmp_path):
    author = Author()
    found = _written(tmp_path / "rollouts.jsonl", author)
    assert [some[0][0] for some in found] == [prompt[0] for prompt in PROMPTS]
    assert {len(some) for some in found} == {2}
    assert all(5 <= ask.new_tokens <= 9 and 0.9 <= ask.top_p <= 1 for ask in author.asked)
    assert len({ask.seed for ask in author.asked}) == len(author.asked) == 3


def test_a_stopped_run_ends_as_if_it_had_not_been(tmp_path):
    whole = _written(tmp_path / "whole.jsonl", Author())
    with pytest.raises(KeyboardInterrupt):
        _written(tmp_path / "halves.jsonl", Author(dies_after=2))
    author = Author()
    assert _written(tmp_path / "halves.jsonl", author) == whole
    assert len(author.asked) == 1


def test_what_is_kept_is_not_written_again(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    first = _written(path, Author())
    assert _written(path, Author(dies_after=0)) == first
    assert _written(path, Author(), seed=2) != first


def test_more_prompts_leave_what_is_there(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    first = _written(path, Author(), PROMPTS[:4])
    author = Author()
    assert _written(path, author)[:4] == first
    assert len(author.asked) == 1


@pytest.fixture(scope="module")
def author(language_model):
    # In bfloat16 several tokens can be the likeliest one.
    return LanguageModelAuthor(language_model, dtype=torch.float32)


def test_a_row_does_not_depend_on_the_rows_beside_it(author):
    # So small a nucleus holds the likeliest token only.
    ask = Ask(samples=2, new_tokens=6, top_p=1e-6, seed=3)
    together = author.write(PROMPTS, ask)
    alone = [author.write([prompt], ask)[0] for prompt in PROMPTS]
    assert together == alone
    assert all(first == second for first, second in together)


def test_the_same_seed_writes_the_same(author):
    ask = Ask(samples=3, new_tokens=8, top_p=0.95, seed=3)
    first = author.write(PROMPTS, ask)
    assert author.write(PROMPTS, ask) == first
    assert author.write(PROMPTS, Ask(3, 8, 0.95, seed=4)) != first
    assert len({tuple(row) for row in first[0]}) > 1


def test_nothing_follows_a_stop_token(author):
    rows = [row for some in author.write(PROMPTS, Ask(40, 30, 1.0, seed=1)) for row in some]
    assert any(len(row) < 30 for row in rows)
    assert all(not set(row[:-1]) & set(STOPS) for row in rows)
    assert all(len(row) == 30 or row[-1] in STOPS for row in rows)


def test_tokens_are_drawn_from_the_nucleus_by_their_shares():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(4000, 1)
    drawn = draw(logits, 0.9, torch.Generator().manual_seed(1))
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert shares[3] == 0  # the three before it hold 0.95 already
    assert torch.allclose(shares[:3], torch.tensor([0.5, 0.3, 0.15]) / 0.95, atol=0.03)


def test_without_a_nucleus_every_token_can_come():
    logits = torch.tensor([0.6, 0.4]).log().repeat(2000, 1)
    drawn = draw(logits, 1.0, torch.Generator().manual_seed(1))
    assert 0.36 < drawn.float().mean() < 0.44
