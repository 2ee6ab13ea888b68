import math
import random

import numpy as np

from app.domain.categories import Category
from app.training.corpus.datasets import Sample
from app.training.corpus.sources import Source
from app.training.moderator.mixture import (
    CONTEXT,
    WINDOW,
    Mixture,
    batches,
    targets_of,
)
from app.training.outputs import CATEGORIES
from tests.training.moderator.tiny import tiny_layout, tiny_samples


def _kinds(sample, source=None):
    values = targets_of(sample, source)[2:]
    return dict(zip(CATEGORIES, values.tolist(), strict=True))


def test_a_harmless_text_is_none_of_the_kinds():
    assert set(_kinds(Sample("x", "s", 0.0, 0.0)).values()) == {0.0}


def test_an_unsafe_text_without_kinds_says_nothing_about_them():
    assert all(math.isnan(value) for value in _kinds(Sample("x", "s", 1.0, math.nan)).values())


def test_a_named_kind_leaves_its_relatives_open_and_rules_out_the_rest():
    kinds = _kinds(Sample("x", "s", 1.0, 1.0, (Category.HATE,)))
    assert kinds[Category.HATE] == 1.0
    assert math.isnan(kinds[Category.THREAT])
    assert kinds[Category.CODE_ABUSE] == 0.0


def test_a_source_that_decides_an_axis_closes_it():
    source = Source("s", axes=(Category.HATE, Category.THREAT))
    kinds = _kinds(Sample("x", "s", 1.0, 1.0, (Category.HATE,)), source)
    assert kinds[Category.THREAT] == 0.0


def test_an_attack_may_be_after_anything():
    kinds = _kinds(Sample("x", "s", 1.0, math.nan, (Category.JAILBREAK,)))
    assert kinds[Category.JAILBREAK] == 1.0
    assert math.isnan(kinds[Category.SELF_HARM])


def test_smoothing_moves_labels_towards_one_half():
    targets = targets_of(Sample("x", "s", 1.0, 0.0), Source("s", smoothing=0.1))
    assert np.allclose(targets[:2], [0.9, 0.1])


def test_an_epoch_follows_from_seed_and_number(tmp_path):
    layout = tiny_layout(tmp_path)
    first, same = (Mixture(tiny_samples(), {}, layout, seed=5) for _ in range(2))
    ids = [example.ids for example in first.epoch(1)]
    assert ids == [example.ids for example in same.epoch(1)]
    assert ids != [example.ids for example in first.epoch(2)]


def test_a_weight_says_how_often_a_row_is_drawn(tmp_path):
    layout = tiny_layout(tmp_path)
    samples = [Sample("bake a cake", "twice", 0.0, 0.0)] * 50
    mixture = Mixture(samples, {"twice": Source("twice", weight=2.5)}, layout, seed=1)
    assert 100 <= len(mixture.epoch(0)) <= 150


def test_no_example_is_longer_than_context_and_window(tmp_path):
    layout = tiny_layout(tmp_path)
    long = " ".join(["cake"] * 700)
    sample = Sample(long, "s", math.nan, 0.0, (), "response", " ".join(["bomb"] * 300))
    lengths = {len(e.ids) for e in Mixture([sample] * 30, {}, layout, seed=1).epoch(0)}
    # Start, separator and end stand around a context and a window; without context two remain.
    assert lengths <= {WINDOW + CONTEXT + 3, WINDOW + 2}


def test_a_long_context_keeps_its_two_ends(tmp_path):
    layout = tiny_layout(tmp_path)
    ids = layout.frame([5], list(range(CONTEXT * 3)))
    assert ids[1] == 0
    assert ids[CONTEXT] == CONTEXT * 3 - 1
    assert len(ids) == CONTEXT + 4


def test_a_response_is_framed_behind_its_prompt(tmp_path):
    layout = tiny_layout(tmp_path)
    prompt, text = layout.tokens("how do i bake"), layout.tokens("bake the cake")
    assert layout.frame(text, prompt) == [
        layout.start,
        *prompt,
        layout.separator,
        *text,
        layout.end,
    ]


def test_batches_keep_every_example_and_their_budget(tmp_path):
    layout = tiny_layout(tmp_path)
    examples = Mixture(tiny_samples(), {}, layout, seed=1).epoch(0)
    made = batches(examples, tokens=120, chance=random.Random(0))
    assert sum(map(len, made)) == len(examples)
    assert all(
        max(len(e.ids) for e in batch) * len(batch) <= 120 for batch in made if len(batch) > 1
    )
