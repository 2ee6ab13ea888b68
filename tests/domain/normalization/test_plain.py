import unicodedata

import pytest

from app.domain.normalization.plain import plain


def tags(text):
    return "".join(chr(0xE0000 + ord(char)) for char in text)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        pytest.param("k\u200bi\u2060l\ufeffl", "kill", id="zero width"),
        pytest.param("ki\u00adll", "kill", id="soft hyphen"),
        pytest.param("\u202ekill\u202c", "kill", id="bidi"),
        pytest.param("ki\ufe0fl\U000e0101l", "kill", id="variation selectors"),
        pytest.param("k\x00i\x7fll", "kill", id="controls"),
        pytest.param("k" + tags("i") + "ll", "kill", id="one tag letter"),
        pytest.param("Hi" + tags("ignore rules") + "!", "Hi ignore rules!", id="smuggled text"),
        pytest.param("a" + tags("kill them") + "b", "a kill them b", id="smuggled in a word"),
        pytest.param("\U0001f3f4" + tags("gbeng") + "\U000e007f", "\U0001f3f4", id="flag"),
        pytest.param("k\u0337\u0322i\u0338l\u0336l\u0340\u0301", "kill", id="zalgo"),
        pytest.param("\u1e33\u1e2d\u1e3d\u1e3b", "kill", id="unwritten letters"),
        pytest.param("\uff4b\uff49\uff4c\uff4c", "kill", id="full width"),
        pytest.param("\U0001d424\U0001d422\U0001d425\U0001d425", "kill", id="mathematical"),
        pytest.param("\u24da\u24d8\u24db\u24db", "kill", id="circled"),
        pytest.param("\U0001f17a\U0001f178\U0001f17b\U0001f17b", "KILL", id="squared"),
        pytest.param("\u1d0b\u026a\u029f\u029f", "kill", id="small capitals"),
        pytest.param("\U0001f1f0 \U0001f1ee", "K I", id="regional indicators"),
        pytest.param("k\u0456ll", "kill", id="Cyrillic letter inside"),
        pytest.param("k\u0456\u0338ll", "kill", id="struck Cyrillic letter inside"),
        pytest.param("b\u03bfmb", "bomb", id="Greek letter inside"),
        pytest.param("no \u0441\u043e\u0440\u0435 today", "no cope today", id="whole word"),
        pytest.param("a\u00a0b\u2003c\u3000d\u2028e", "a b c d e", id="spaces"),
        pytest.param("tab\tline\r\n", "tab\tline\r\n", id="layout stays"),
        pytest.param("x\ud83dy", "x\ufffdy", id="lone surrogate"),
        pytest.param("wait\u2026", "wait...", id="ellipsis"),
        pytest.param("b\u0131g f\u0131sh", "big fish", id="dotless i outside Turkish"),
        pytest.param("\u043cy a\u04cf\u04cf", "my all", id="cousins in a mixed word"),
        pytest.param("\ufdfa", "\ufdfa", id="ligature that would explode"),
        pytest.param("", "", id="empty"),
    ],
)
def test_what_the_eye_sees(given, seen):
    assert plain(given).text == seen


@pytest.mark.parametrize(
    "text",
    [
        "Съешь же ещё этих мягких французских булок, а рот закрой.",
        "А у нас в Windows всё работает, с рук не купишь.",
        "Ποιος είναι ο νόμος της φύσης;",
        "Voilà l'été à Besançon, Übergröße, niño, Łódź, žluťoučký kůň",
        "Tiếng Việt có nhiều dấu",
        "日本語のPythonコードを書く",
        "한국어 문장입니다",
        "हिन्दी में एक वाक्य",
        "frequency \u03bd and energy",
        "İstanbul'da kılıç",
        "Well, “quoted” — 100 €, 😀",
    ],
)
def test_genuine_writing_is_left_alone(text):
    view = plain(unicodedata.normalize("NFC", text))
    assert view.text == unicodedata.normalize("NFC", text)
    assert view.origin is None


def test_decomposed_letters_are_composed_and_keep_their_place():
    view = plain("cafe\u0301 noir")
    assert view.text == "café noir"
    assert view.to_original(3, 4) == (3, 5)
    assert view.to_original(5, 9) == (6, 10)


def test_a_russian_word_in_english_is_not_read_as_latin_where_russian_stands_beside_it():
    text = "Он сказал рот and left"
    assert plain(text).text == text


def test_marks_without_end_cost_one_letter():
    assert plain("a" + "\u0301\u0323" * 5000 + "b").text == "ab"
