"""A byte-level BPE vocabulary, cut to the tokens that texts use most.

Knows nothing about weights. What is left reads every text still: rarer words become more tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


def cut_vocabulary(
    source: Path, target: Path, texts: Sequence[str], *, size: int, special: Sequence[str]
) -> NDArray[np.int64]:
    """Write the tokenizer of `source` to `target` with `size` tokens left.

    Args:
        source: `tokenizer.json` of a byte-level BPE.
        target: Where the smaller one goes.
        texts: Whose tokens are counted.
        size: Tokens to keep: bytes, special tokens, then the most used ones with their parts.
        special: Special tokens to keep; the others go.

    Returns:
        Ids of the kept tokens in the old vocabulary, by new id: (size,).
    """
    content = json.loads(source.read_text("utf-8"))
    model = content["model"]
    known: dict[str, int] = model["vocab"]
    merges = [_pair(each) for each in model["merges"]]
    parts: dict[str, tuple[str, str]] = {}
    for first, second in merges:
        parts.setdefault(first + second, (first, second))

    encodings = Tokenizer.from_file(str(source)).encode_batch(texts, add_special_tokens=False)
    used = Counter(token for encoding in encodings for token in encoding.tokens)
    single = [token for token in known if len(token) == 1]
    kept = dict.fromkeys([*special, *single])
    # Of equally frequent tokens the older one comes first: the result does not hang on hashes.
    for token in sorted(parts, key=lambda each: (-used[each], known[each])):
        family = [each for each in _family(token, parts) if each not in kept]
        if len(kept) + len(family) <= size:
            kept.update(dict.fromkeys(family))

    names = sorted(kept, key=known.__getitem__)
    model["vocab"] = {name: index for index, name in enumerate(names)}
    model["merges"] = [
        [first, second]
        for first, second in merges
        if first in kept and second in kept and first + second in kept
    ]
    content["added_tokens"] = [
        {**entry, "id": model["vocab"][entry["content"]]}
        for entry in content["added_tokens"]
        if entry["content"] in kept
    ]
    target.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    return np.asarray([known[name] for name in names])


def _family(token: str, parts: dict[str, tuple[str, str]]) -> Iterable[str]:
    """The token and everything that it is merged from."""
    yield token
    for part in parts.get(token, ()):
        yield from _family(part, parts)


def _pair(merge: Any) -> tuple[str, str]:
    """Both ways of writing a merge: a list of two, or one string."""
    first, second = merge if isinstance(merge, list) else merge.split(" ")
    return first, second
