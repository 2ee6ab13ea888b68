import math
from types import SimpleNamespace

from app.training.corpus.datasets import Sample
from app.training.toxicdetector.prompts import ROWS, known_prompts, sample, windows_of


def rows(source, label, count, role="prompt"):
    return [
        Sample(f"{source} {label} {number}", source, label, label, role=role)
        for number in range(count)
    ]


class FourLetters:
    """A prompt for every four letters."""

    def encode(self, text):
        cuts = [text[start : start + 4] for start in range(0, len(text), 4)]
        return [SimpleNamespace(token_ids=tuple(map(ord, cut))) for cut in cuts], ()


def test_no_source_drowns_the_others_and_unknown_labels_stay_out():
    plenty, few = rows("plenty", 1.0, 900), rows("few", 1.0, 7)
    unknown = rows("unknown", math.nan, 5)
    answers = rows("answers", 1.0, 5, role="response")

    taken = sample([*plenty, *few, *unknown, *answers])

    assert {row.source for row in taken} == {"plenty", "few"}
    assert set(few) <= set(taken)
    assert len(taken) < 300


def test_there_are_never_more_rows_than_can_be_read():
    sources = [row for index in range(12) for row in rows(f"source {index}", 0.0, 600)]
    assert len(sample(sources)) == ROWS


def test_a_row_stays_chosen_when_others_come():
    some = rows("some", 1.0, 100)
    assert set(sample(some)) <= set(sample([*some, *rows("other", 1.0, 50)]))


def test_known_prompts_have_a_label_and_are_the_same_every_time():
    some = rows("some", 0.0, 20)
    noise = [*rows("noise", math.nan, 5), *rows("noise", 1.0, 5, role="comment")]
    taken = known_prompts([*noise, *some], 8)
    assert len(taken) == 8
    assert set(taken) <= set(some)
    assert taken == known_prompts(list(reversed(some)), 8)


def test_of_a_long_text_the_ends_are_read_or_all_of_it():
    texts = ["abcdefghijkl", "mn", ""]
    everything = windows_of(texts, FourLetters(), ends=False)
    assert everything.owner.tolist() == [0, 0, 0, 1]
    ends = windows_of(texts, FourLetters(), ends=True)
    assert ends.owner.tolist() == [0, 0, 1]
    assert ends.token_ids[1] == everything.token_ids[2]
