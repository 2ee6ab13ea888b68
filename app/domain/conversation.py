"""What every dialect is parsed into: messages made of parts, each part with its field path.

Knows nothing about JSON or HTTP: a path is an opaque string that the dialect understands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """Which side of the model the text is on."""

    INPUT = "input"
    OUTPUT = "output"


class PartKind(StrEnum):
    """What role a piece of text plays inside its message."""

    TEXT = "text"
    REASONING = "reasoning"
    REFUSAL = "refusal"
    TOOL_ARGUMENTS = "tool_arguments"
    TOOL_RESULT = "tool_result"
    TOOL_DEFINITION = "tool_definition"
    OTHER = "other"
    MEDIA = "media"  # an image, audio or file: it has no text, so nothing can scan it


@dataclass(frozen=True, slots=True)
class Part:
    """One scannable field.

    `path` says where the text stands in the original document, such as
    `messages[2].tool_calls[0].function.arguments`; spans are offsets into `text`.
    """

    path: str
    text: str
    kind: PartKind = PartKind.TEXT


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is the dialect's own word (`user`, `assistant`, `system`, `tool`, …)."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Everything that one verdict is about, in order."""

    messages: tuple[Message, ...]

    def parts(self) -> Iterator[Part]:
        """All parts of all messages, in order."""
        for message in self.messages:
            yield from message.parts

    @classmethod
    def of_text(cls, text: str, path: str = "input", role: str = "user") -> Conversation:
        """A conversation of one message with one text."""
        return cls((Message(role, (Part(path, text),)),))
