"""Disguises for training texts: what people do to a text so that a detector overlooks it.

Knows nothing about labels, and needs not: a disguise neither adds harm nor takes it away. None of
them asks for rules to be dropped, so a harmless text in a wrapper stays harmless.
"""

from __future__ import annotations

import base64 as base64_codec
import codecs
import json
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from app.training.corpus import letters
from app.training.corpus.frames import (
    ANSWER_STARTS,
    FICTION,
    FILLERS,
    INFORMAL,
    PERSONAS,
    POLITE,
    RESEARCH,
    ROLE_PLAYS,
)

Transformation = Callable[[str, random.Random], str]

_TAGS: Final = ("message", "request", "input", "text", "note")
_JSON_KEYS: Final = ("prompt", "message", "content", "query", "comment")
_CODE: Final = (
    "```\n{}\n```",
    "```text\n{}\n```",
    "```python\n# {}\n```",
    '```python\nprint("{}")\n```',
    "<pre>{}</pre>",
    "$ echo '{}'",
    "/* {} */",
)
_ODD: Final = (
    "]( -- }; /* ::{ lst% ]{' <?> ^^ )). !! == $% |> ;; ~~ @@ \\n \\w+ [[ `` #! => ..' "
    "Kapitel verso tok lambda prefixum NSView sowie printf gelijk Mgr tuple zuvor iteratorOf ergo"
)


def disguise(text: str, chance: random.Random) -> str:
    """`text` after one random transformation; see `_WEIGHTS` for how often which is drawn."""
    names = list(TRANSFORMATIONS)
    weights = [_WEIGHTS.get(name, 1.0) for name in names]
    return TRANSFORMATIONS[chance.choices(names, weights)[0]](text, chance)


def frame(text: str, chance: random.Random) -> str:
    """`text` in a role, a story, a study, or with the first words of its answer prescribed."""
    return chance.choice((role_play, persona, sure_suffix, fictional_frame, research_frame))(
        text, chance
    )


def informal(text: str, chance: random.Random) -> str:
    """Spellings of chats and of dialects, lower case, little punctuation."""

    def spelled(match: re.Match[str]) -> str:
        choices = INFORMAL.get(match[0].lower())
        return chance.choice(choices) if choices else match[0]

    spoken = re.sub(r"[A-Za-z]+(?:'[a-z]+)?", spelled, text)
    return spoken.lower().rstrip(".") if chance.random() < 1 / 2 else spoken


def markdown_emphasis(text: str, chance: random.Random) -> str:
    """Bold or italic words, a heading, a quotation or a list item."""
    if chance.random() < 1 / 3:
        return chance.choice(("# {}", "> {}", "- {}", "**{}**", "~~{}~~")).replace("{}", text)
    mark = chance.choice(("*", "**", "_", "`", "~~"))
    return letters.changed_words(text, chance, lambda word: f"{mark}{word}{mark}")


def code_block(text: str, chance: random.Random) -> str:
    """Inside a code block or a comment."""
    return _framed(text, _CODE, chance)


def json_or_xml(text: str, chance: random.Random) -> str:
    """As a field of JSON or an element of XML."""
    if chance.random() < 1 / 2:
        tag = chance.choice(_TAGS)
        return f"<{tag}>{text}</{tag}>"
    fields: dict[str, str | int] = {chance.choice(_JSON_KEYS): text}
    if chance.random() < 1 / 2:
        fields |= {"id": chance.randrange(1000), "lang": "en"}
    return json.dumps(fields, ensure_ascii=False)


def role_play(text: str, chance: random.Random) -> str:
    """As the line of a role in a game."""
    return _framed(text, ROLE_PLAYS, chance)


def persona(text: str, chance: random.Random) -> str:
    """Spoken to an assistant with a name and a character."""
    return _framed(text, PERSONAS, chance)


def sure_suffix(text: str, chance: random.Random) -> str:
    """With the words that the answer must start with."""
    return _framed(text, ANSWER_STARTS, chance)


def fictional_frame(text: str, chance: random.Random) -> str:
    """As a part of a story."""
    return _framed(text, FICTION, chance)


def research_frame(text: str, chance: random.Random) -> str:
    """As a question of science, law or training."""
    return _framed(text, RESEARCH, chance)


def polite_prefix(text: str, chance: random.Random) -> str:
    """With a greeting, a request or thanks."""
    return _framed(text, POLITE, chance)


def filler_prefix(text: str, chance: random.Random) -> str:
    """After one to three harmless sentences."""
    return " ".join([*chance.sample(FILLERS, chance.randint(1, 3)), text])


def gibberish_suffix(text: str, chance: random.Random) -> str:
    """Followed by odd tokens, as a search against a model finds them."""
    odd = chance.choices(_ODD.split(), k=chance.randint(6, 20))
    odd += ["".join(chance.choices(string.ascii_letters, k=chance.randint(2, 9))) for _ in "ab"]
    chance.shuffle(odd)
    return f"{text} {chance.choice(('', ' ')).join(odd)}"


# Encodings, of the whole text or of its second part.


def base64(text: str, chance: random.Random) -> str:
    """Base64 of the UTF-8 bytes."""
    return _encoded(text, chance, lambda part: base64_codec.b64encode(_bytes(part)).decode())


def hexadecimal(text: str, chance: random.Random) -> str:
    """Hex digits of the UTF-8 bytes, at times parted by spaces."""
    gap = chance.random() < 1 / 2
    return _encoded(text, chance, lambda part: _bytes(part).hex(*(" ",) if gap else ()))


def rot13(text: str, chance: random.Random) -> str:
    """The alphabet turned by thirteen."""
    return _encoded(text, chance, lambda part: codecs.encode(part, "rot13"))


def url_encoding(text: str, chance: random.Random) -> str:
    """Percent signs, for every byte or for what an address may not hold."""
    if chance.random() < 1 / 2:
        return _encoded(text, chance, lambda part: quote(_bytes(part), safe=""))
    return _encoded(text, chance, lambda part: "".join(f"%{byte:02X}" for byte in _bytes(part)))


def _framed(text: str, frames: Sequence[str], chance: random.Random) -> str:
    return chance.choice(frames).replace("{}", text)


def _encoded(text: str, chance: random.Random, encode: Callable[[str], str]) -> str:
    words = text.split(" ")
    kept = chance.randrange(len(words)) if chance.random() < 1 / 3 else 0
    return " ".join([*words[:kept], encode(" ".join(words[kept:]))])


def _bytes(text: str) -> bytes:
    """Scraped texts hold halves of surrogate pairs, which UTF-8 does not."""
    return text.encode(errors="replace")


TRANSFORMATIONS: Final[Mapping[str, Transformation]] = MappingProxyType(
    {
        each.__name__: each
        for each in (
            letters.homoglyphs,
            letters.leetspeak,
            letters.accents,
            letters.zero_width,
            letters.letter_spacing,
            letters.character_swaps,
            letters.dropped_letters,
            letters.doubled_letters,
            letters.masked_letters,
            letters.inner_punctuation,
            letters.random_case,
            letters.no_spaces,
            informal,
            markdown_emphasis,
            code_block,
            json_or_xml,
            role_play,
            persona,
            sure_suffix,
            fictional_frame,
            research_frame,
            polite_prefix,
            filler_prefix,
            gibberish_suffix,
            base64,
            hexadecimal,
            rot13,
            url_encoding,
        )
    }
)

ENCODINGS: Final = frozenset({"base64", "hexadecimal", "rot13", "url_encoding"})
"""Unreadable without decoding; the service's normalisation undoes most of it before a model."""

UNDONE: Final = ENCODINGS | {"homoglyphs", "leetspeak", "zero_width", "letter_spacing"}
"""What the service's normalisation undoes, at least in most words."""

_WEIGHTS: Final[Mapping[str, float]] = {
    **dict.fromkeys(ENCODINGS, 0.25),
    # What people do most, and what normalising does not undo.
    **dict.fromkeys(("character_swaps", "dropped_letters", "doubled_letters"), 2.5),
    **dict.fromkeys(("homoglyphs", "masked_letters", "inner_punctuation"), 1.5),
}
