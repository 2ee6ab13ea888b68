from statistics import mean

from app.domain.normalization.normalize import normalize
from bench.texts import LONGEST, SHORTEST, make_prose, make_texts


def test_the_same_seed_gives_the_same_texts():
    assert make_texts(20, seed=3) == make_texts(20, seed=3)
    assert make_texts(20, seed=3) != make_texts(20, seed=4)


def test_all_texts_differ():
    assert len(set(make_texts(512))) == 512


def test_lengths_are_those_of_real_prompts():
    words = [len(text.split()) for text in make_texts(1_000)]
    assert 30 <= mean(words) <= 38
    assert min(words) >= SHORTEST
    assert max(words) >= LONGEST
    assert len([count for count in words if count < 15]) > 150
    assert len([count for count in words if count > 80]) > 30


def test_some_texts_are_code_not_ascii_or_disguised():
    texts = make_texts(512)
    assert any("```" in text for text in texts)
    assert any(not text.isascii() for text in texts)
    names = {view.name.value for text in texts for view in normalize(text)}
    assert {"plain", "leet", "spaced", "base64"} <= names


def test_prose_has_as_many_words_as_asked():
    assert [len(make_prose(count).split()) for count in (1, 37, 400)] == [1, 37, 400]
