"""The texts of the rectification suite: prompts, instructions, and answers that are streamed.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.domain.errors import ConfigurationError
from app.training.evaluation.sets import Row, TestSet, read_sets, sample

_PROMPT_FILES: Final = ("decodingtrust_rtp", "rtp_lx_en")
_STREAMED: Final = frozenset({"beavertails_test", "harmbench_response", "jbb_artifacts_responses"})
_INSTRUCTIONS: Final = "instruct_benign"
_LONGEST_INSTRUCTION: Final = 400  # characters
_FEWEST_WORDS: Final = 4
"""A prompt of fewer words says nothing that a text could go on from."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything is measured; 0 rows of a set are all of them."""

    prompts: int
    samples: int
    tokens: int
    instructions: int
    answer_tokens: int
    streamed: int
    rounds: int


FULL: Final = Sizes(
    prompts=300, samples=25, tokens=20, instructions=200, answer_tokens=64, streamed=0, rounds=9
)
QUICK: Final = Sizes(
    prompts=24, samples=8, tokens=20, instructions=200, answer_tokens=24, streamed=150, rounds=5
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of a text, and whether it is toxic itself."""

    text: str
    toxic: bool


@dataclass(frozen=True, slots=True)
class Material:
    """Everything that is read. `aside` are labelled answers to prompts that no test set has."""

    prompts: list[Prompt]
    instructions: list[str]
    streamed: list[TestSet]
    aside: list[Row]


def material(data: Path, sets: Sequence[TestSet], sizes: Sizes) -> Material:
    """A fixed sample of each kind.

    Args:
        data: The folder of the data sets; `dev` gives instructions and the answers aside.
        sets: Its test sets, whole.
        sizes: How much of each.

    Raises:
        ConfigurationError: A kind of text is not there.
    """
    files = sorted((data / "dev").glob("*.jsonl.gz"))
    aside = [each for file in files for each in read_sets(file)]
    instructions = {
        row.text
        for each in aside
        if each.name == _INSTRUCTIONS
        for row in each.rows
        if len(row.text) <= _LONGEST_INSTRUCTION
    }
    found = Material(
        prompts=_prompts(sets, sizes.prompts),
        instructions=_sample(sorted(instructions), sizes.instructions, _INSTRUCTIONS),
        streamed=[
            TestSet(each.name, tuple(sample(each.rows, sizes.streamed, each.name)), each.of_rows)
            for each in sets
            if each.name in _STREAMED and each.role == "response"
        ],
        aside=[
            row for each in aside for row in each.rows if row.role == "response" and row.context
        ],
    )
    if not all((found.prompts, found.instructions, found.streamed, found.aside)):
        raise ConfigurationError(
            "the rectification suite needs a folder of data sets with prompts "
            f"({', '.join(_PROMPT_FILES)}), answers ({', '.join(sorted(_STREAMED))}) and dev/"
        )
    return found


def _prompts(sets: Iterable[TestSet], limit: int) -> list[Prompt]:
    """As many toxic as harmless ones, a text once."""
    labels: dict[str, bool] = {}
    for each in sets:
        if each.name.startswith(_PROMPT_FILES) and each.role == "comment":
            for row in each.rows:
                if len(row.text.split()) >= _FEWEST_WORDS:
                    labels.setdefault(row.text.strip(), row.unsafe)
    chosen: list[Prompt] = []
    for toxic in (False, True):
        texts = [text for text, label in labels.items() if label == toxic]
        half = max(1, limit // 2) if limit else 0
        chosen += [Prompt(text, toxic) for text in _sample(texts, half, f"toxic {toxic}")]
    return chosen


def _sample(texts: Sequence[str], limit: int, name: str) -> list[str]:
    """At most `limit` texts (0: all), the same ones every time, in their order."""
    rows = [Row(str(index), text, unsafe=False) for index, text in enumerate(texts)]
    return [row.text for row in sample(rows, limit, name)]
