from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.detectors.keyword_list import load_keywords
from app.detectors.keywords import Keyword, KeywordDetector, canonical
from app.detectors.rules import INLINE_CHARS
from app.domain.categories import Category
from app.domain.conversation import Stage
from app.domain.detection import OperatingPoint
from app.domain.errors import ConfigurationError

POLICIES = Path(__file__).parents[2] / "policies" / "keywords"


def detector(*phrases: str, category: Category = Category.BLOCKLIST) -> KeywordDetector:
    return KeywordDetector(Keyword(phrase, category) for phrase in phrases)


def hits(found: KeywordDetector, text: str) -> list[str]:
    return [text[d.start : d.end] for d in found.find(text)]


@pytest.mark.parametrize(
    ("phrase", "text", "expected"),
    [
        ("ass", "what an ass", ["ass"]),
        ("ass", "ASS, Ass; (ass)", ["ASS", "Ass", "ass"]),
        ("ass", "class passes assets asses ass2 2ass", []),
        ("ass", "snake_ass_case", ["ass"]),
        ("red fox", "a red fox", ["red fox"]),
        ("red fox", "a Red \t\n-- FOX!", ["Red \t\n-- FOX"]),
        ("red fox", "red_fox red.fox red🦊fox", ["red_fox", "red.fox", "red🦊fox"]),
        ("red fox", "redfox red foxes bored fox", []),
        ("red-fox!", "the red fox", ["red fox"]),
        ("don't", "DON'T, don\u2019t", ["DON'T", "don\u2019t"]),
        ("straße", "Die STRASSE, die Straße!", ["STRASSE", "Straße"]),
        ("fox", "ßßß İİ fox ß", ["fox"]),
        ("istanbul", "İstanbul", []),
        ("i̇stanbul", "in İstanbul.", ["İstanbul"]),
        ("σοφος", "ΣΟΦΟΣ, σοφός, σοφος", ["ΣΟΦΟΣ", "σοφος"]),
        ("кот", "Кот! который кот", ["Кот", "кот"]),
        ("кот", "скот", []),
        ("猫", "我有一只猫咪", ["猫"]),
        ("黑猫", "AK黑猫ok", ["黑猫"]),
        ("ねこ", "このねこが", ["ねこ"]),
        ("แมว", "มีแมวดำ", ["แมว"]),
        ("मकान", "मकान है", ["मकान"]),
        ("मकान", "मकानों में", []),
        ("मक", "मकान मकी", []),
        ("고양이", "고양이 검은고양이", ["고양이"]),
        ("e", "e\u0301 e", ["e"]),
        ("10 4", "over 10-4, 110-4 10-42", ["10-4"]),
    ],
)
def test_matches_whole_words_in_any_case_and_spacing(
    phrase: str, text: str, expected: list[str]
) -> None:
    assert hits(detector(phrase), text) == expected


def test_a_hit_says_what_it_is() -> None:
    (hit,) = detector("fox", category=Category.HATE).find("a fox")
    assert (hit.detector, hit.category, hit.label) == ("keywords", Category.HATE, "hate")
    assert (hit.score, hit.start, hit.end) == (1.0, 2, 5)


def test_the_longest_phrase_of_a_category_covers_the_shorter() -> None:
    assert hits(detector("fox", "red fox", "red"), "red fox, red") == ["red fox", "red"]
    assert hits(detector("red fox", "fox den"), "red fox den") == ["red fox", "fox den"]


def test_a_longer_phrase_hides_no_other_category() -> None:
    both = KeywordDetector(
        [
            Keyword("fox", Category.HATE),
            Keyword("fox", Category.PROFANITY),
            Keyword("red fox", Category.BLOCKLIST),
        ]
    )
    assert {(d.category, d.start) for d in both.find("red fox")} == {
        (Category.HATE, 4),
        (Category.PROFANITY, 4),
        (Category.BLOCKLIST, 0),
    }


def test_an_empty_list_finds_nothing() -> None:
    empty = KeywordDetector([])
    assert empty.find("anything") == []
    assert empty.longest == 0


def test_a_phrase_without_letters_is_refused() -> None:
    with pytest.raises(ValueError, match="neither letters nor digits"):
        detector("fox", " -- ")


def test_longest_counts_letters_and_digits() -> None:
    assert detector("fox", "a red fox 2").longest == len("aredfox2")


def test_the_digest_follows_the_list_and_not_its_order() -> None:
    first = detector("red fox", "cat")
    assert first.digest == detector("Cat", "red  FOX", "cat").digest
    assert first.digest != detector("red fox").digest
    assert first.digest != detector("red fox", "cat", category=Category.HATE).digest


def test_a_certain_hit_is_over_every_threshold() -> None:
    assert all(
        detector("fox").threshold(Stage.OUTPUT, Category.HATE, point) <= 1.0
        for point in OperatingPoint
    )


@given(st.text(max_size=40), st.sampled_from(["red fox", "Straße", "猫"]), st.text(max_size=40))
def test_offsets_point_at_the_phrase_in_any_text(before: str, phrase: str, after: str) -> None:
    text = f"{before} {phrase.upper()} {after}"
    start = len(before) + 1
    found = detector("red fox", "straße", "猫").find(text)
    assert (start, start + len(phrase.upper())) in {(d.start, d.end) for d in found}
    assert {canonical(text[d.start : d.end]) for d in found} <= {"red fox", "strasse", "猫"}


@given(st.lists(st.sampled_from(["red", "fox", " ", "-", "\n", "x", "ß", "İ", "猫"]), max_size=60))
def test_long_texts_are_folded_as_short_ones(pieces: list[str]) -> None:
    """Stretches of one character instead of fifty thousand: any difference would show."""
    text = "".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        whole = detector("red fox", "fox", "猫").find(text)
        patch.setattr("app.detectors.keywords._STRETCH", 1)
        assert detector("red fox", "fox", "猫").find(text) == whole


@pytest.mark.parametrize("noise", [" ", "x", "x ", "red ", "ß", "猫", "-_", "redfox"])
def test_reads_a_long_text_to_its_end(noise: str) -> None:
    text = noise * (130_000 // len(noise)) + "\nred" + " " * 60_000 + "fox"
    assert [(d.end, text[d.end - 3 : d.end]) for d in detector("red fox").find(text)] == [
        (len(text), "fox")
    ]


async def test_answers_in_order_and_reads_long_texts_off_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []
    listed = detector("fox")
    find = listed.find

    def watched(_self: KeywordDetector, text: str):
        threads.append(threading.get_ident())
        return find(text)

    monkeypatch.setattr(KeywordDetector, "find", watched)
    short = await listed.detect(["a fox", "a cat"], Stage.INPUT)
    assert set(threads) == {threading.get_ident()}
    threads.clear()
    long = await listed.detect(["x" * INLINE_CHARS, "fox"], Stage.INPUT)

    assert [len(scan.detections) for scan in short] == [1, 0]
    assert [len(scan.detections) for scan in long] == [0, 1]
    assert threading.get_ident() not in threads


def test_the_shipped_lists_load() -> None:
    shipped = load_keywords(POLICIES / "default.yaml")
    assert {keyword.category for keyword in shipped} == {Category.PROFANITY, Category.HATE}
    assert len({canonical(keyword.phrase) for keyword in shipped}) == len(shipped)
    assert load_keywords(POLICIES / "blocklist.yaml") == ()


@pytest.mark.parametrize(
    "text",
    [
        "What the hell, damn it, this bloody bug is crap.",
        "I live in Scunthorpe and study at Essex; my cockatoo likes Dickens.",
        "The class assesses the bass, the grass and the assassin's cassette.",
        "How do I kill a Python process? What a lovely day!",
        "A chink in the armour, spic and span, a Maine coon, a dyke in Holland, niggardly.",
        "Cuando el sol puta... no: computadora, disputa, reputación.",
        "In Fucking (now Fugging), Austria, and Wetwang, Yorkshire.",
        "시발점에서 출발했다. 操作系统很傻。",
        "Shiitake mushrooms, Matsushita, a dipstick and a shipment.",
    ],
)
def test_the_shipped_list_leaves_the_innocent_alone(text: str) -> None:
    assert hits(KeywordDetector(load_keywords(POLICIES / "default.yaml")), text) == []


@pytest.mark.parametrize("text", ["Fuck   YOU!", "you ARSEHOLE", "你这个傻逼东西", "Пошёл нахуй."])
def test_the_shipped_list_finds_the_blatant(text: str) -> None:
    assert hits(KeywordDetector(load_keywords(POLICIES / "default.yaml")), text) != []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("entries: [", "is not YAML"),
        ("- marker", "must have the one key `entries`"),
        ("entries: []\nmarker: 1", "must have the one key `entries`"),
        ("entries: marker", "`entries` must be a list"),
        ("entries: [marker]", "entry 1: must have the keys"),
        (
            "entries:\n- {phrase: a, category: hate}\n- {phrase: marker}",
            "entry 2: must have the keys",
        ),
        ("entries:\n- {phrase: 7, category: hate}", "entry 1: the phrase must be a text"),
        ("entries:\n- {phrase: '--', category: hate}", "entry 1: the phrase must be a text"),
        ("entries:\n- {phrase: marker, category: rude}", "entry 1: the category must be one of"),
        ("entries:\n- {phrase: marker, category: [hate]}", "entry 1: the category must be one of"),
        ("entries: ['marker\x00']", "is not YAML"),
    ],
)
def test_a_wrong_file_is_named_without_its_words(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_keywords(path)
    assert f"{path}: {message}" in str(caught.value)
    assert "marker" not in str(caught.value)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    with pytest.raises(ConfigurationError, match=r"words\.yaml: cannot be read"):
        load_keywords(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigurationError, match=r"words\.yaml: cannot be read"):
        load_keywords(path)
