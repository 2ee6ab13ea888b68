"""The texts of the benchmark: harmless, seeded, of the lengths that real prompts have.

Knows nothing about who reads them. Most are prose; some are code, some are disguised, some are not
plain ASCII, as a guard must pay for all of these.
"""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Callable, Mapping
from typing import Final

SHORTEST: Final = 5
LONGEST: Final = 150
_MEDIAN_WORDS: Final = 23.0
_WIDTH: Final = 0.85  # of the normal distribution of log(words); the mean comes out near 34

_SLOTS: Final[Mapping[str, tuple[str, ...]]] = {
    "who": ("my sister", "a colleague", "our teacher", "the neighbour", "my cousin", "a customer"),
    "thing": (
        "bicycle", "garden shed", "spreadsheet", "bread recipe", "violin", "train ticket",
        "kitchen table", "web page", "photo album", "tax form", "raincoat", "study plan",
    ),
    "place": ("Lisbon", "the library", "our office", "the mountains", "Ghent", "the harbour"),
    "quality": ("quiet", "cheap", "sturdy", "short", "friendly", "colourful", "simple", "careful"),
    "deed": (
        "repair", "describe", "plan", "compare", "paint", "translate", "summarise", "organise",
    ),
    "when": ("tomorrow", "in early spring", "after lunch", "next week", "before the holidays"),
    "number": ("3", "7", "12", "25", "140", "1999", "2.5", "60"),
    "topic": (
        "photosynthesis", "the water cycle", "compound interest", "Roman roads", "sorting lists",
        "sourdough", "tidal power", "jazz harmony", "bird migration", "public transport",
    ),
}  # fmt: skip
_SENTENCES: Final = (
    "Could you help me {deed} the {thing} that {who} left in {place}?",
    "Explain {topic} to someone who has never heard of it, in {number} steps.",
    "I would like a {quality} {thing} for {who}, ideally delivered {when}.",
    "Write a {quality} letter to {who} about {topic} and mention {place} at least once.",
    "We meet {when} in {place}, and about {number} people will bring a {thing}.",
    "What is the difference between a {quality} {thing} and a {quality} one?",
    "Please {deed} this paragraph on {topic} so that it sounds {quality}.",
    "How long does it take to {deed} a {thing} if {who} helps for {number} hours?",
    "The last time I was in {place} the {thing} looked {quality} but felt heavy.",
    "Give me {number} ideas for a talk about {topic}, sorted from {quality} to bold.",
    "It rained all day, so {who} stayed at home and read about {topic}.",
    "Is it better to {deed} the {thing} {when}, or should I wait until it is {quality}?",
)
_FOREIGN: Final = (
    "Könnten Sie mir bitte erklären, wie man im Frühling Tomaten pflanzt?",
    "J\u2019aimerais préparer un gâteau pour l\u2019anniversaire de ma sœur demain soir.",
    "¿Cuál es la mejor época para visitar Granada con niños pequeños?",
    "Можете ли вы посоветовать тихий парк около библиотеки?",
    "明日の朝、駅までの道順を教えてください。",
)
_CODE: Final = (
    "def total(rows):\n    return sum(row['price'] * row['count'] for row in rows)\n",
    "for (let i = 0; i < items.length; i++) {\n  console.log(items[i].name);\n}\n",
    "SELECT city, COUNT(*) AS visits FROM trips WHERE year = 2024 GROUP BY city;\n",
    '{"id": 17, "name": "raincoat", "sizes": ["S", "M"], "price": 49.9}\n',
    "docker run --rm -p 8080:80 nginx:1.27 && curl -s http://localhost:8080/\n",
)
_LEET: Final = str.maketrans({"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7"})
_LOOK_ALIKES: Final = str.maketrans({"a": "\u0430", "e": "\u0435", "o": "\u043e", "c": "\u0441"})


def make_texts(count: int, seed: int = 7) -> list[str]:
    """`count` different texts; the same ones for the same seed."""
    source = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[_text(source)] = None
    return list(texts)


def make_prose(words: int, seed: int = 7) -> str:
    """Plain prose of exactly `words` words."""
    return _prose(random.Random(seed), words)


def _text(source: random.Random) -> str:
    words = round(source.lognormvariate(math.log(_MEDIAN_WORDS), _WIDTH))
    words = min(max(words, SHORTEST), LONGEST)
    kinds = (_prose, _typographic, _with_code, _with_foreign, _disguised)
    (kind,) = source.choices(kinds, weights=(70, 10, 8, 7, 5))
    return kind(source, words)


def _prose(source: random.Random, words: int) -> str:
    picked: list[str] = []
    while len(picked) < words:
        sentence = source.choice(_SENTENCES)
        filled = {slot: source.choice(options) for slot, options in _SLOTS.items()}
        picked += sentence.format_map(filled).split()
    return " ".join(picked[:words])


def _typographic(source: random.Random, words: int) -> str:
    return f"\u201c{_prose(source, words)}\u201d \u2014 that\u2019s all \U0001f642"


def _with_code(source: random.Random, words: int) -> str:
    return f"{_prose(source, words)}\n```\n{source.choice(_CODE)}```"


def _with_foreign(source: random.Random, words: int) -> str:
    return f"{source.choice(_FOREIGN)} {_prose(source, words)}"


def _disguised(source: random.Random, words: int) -> str:
    """Prose with a stretch of it written in a way that hides words from a plain reader."""
    stretch = _prose(source, 6)
    disguise: Callable[[str], str] = source.choice(
        (
            lambda text: text.translate(_LEET),
            lambda text: text.translate(_LOOK_ALIKES),
            "\u200b".join,
            " ".join,
            lambda text: base64.b64encode(text.encode()).decode(),
        )
    )
    return f"{_prose(source, words)} {disguise(stretch)}"
