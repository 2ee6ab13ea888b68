"""Makes the shipped `tokenizer.json` out of the encoder's own one, so that no text is hidden.

Knows nothing about training.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tokenizers import Regex, Tokenizer, pre_tokenizers

LONGEST_WORD: Final = 100
"""WordPiece turns a longer word into one unknown token, which would hide whatever it holds."""


def build_tokenizer(source: Path, target: Path) -> None:
    """Write a copy of the tokenizer at `source` that neither truncates, pads nor swallows words.

    A word is cut into pieces of at most `LONGEST_WORD` characters, and a character that the
    vocabulary lacks stands alone: only that character becomes unknown, not the word around it.
    """
    tokenizer = Tokenizer.from_file(str(source))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = tokenizer.get_vocab()
    known = sorted(token for token in vocabulary if len(token) == 1 and f"##{token}" in vocabulary)
    unknown = "[^" + "".join(re.escape(character) for character in known) + "]"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Split(Regex(unknown), "isolated"),
            pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated"),
        ]
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(target))
