from __future__ import annotations

from typing import Any

from app.domain.conversation import PartKind
from app.proxy.dialects.openai_chat import read_request


def parts_of(*messages: dict[str, Any], **more: Any) -> list[tuple[str, str, str, PartKind]]:
    request = read_request({"model": "m", "messages": list(messages), **more})
    return [
        (message.role, part.path, part.text, part.kind)
        for message in request.conversation.messages
        for part in message.parts
    ]


def test_every_text_of_a_request_has_its_role_path_and_kind() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}}
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "look_up", "arguments": '{"a": 1}'},
    }
    parts = parts_of(
        {"role": "system", "content": "Be kind."},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "Look"}, image]},
        {"role": "assistant", "reasoning": "Hm", "refusal": "No", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "found"},
        {"role": "assistant", "audio": {"id": "audio_1"}, "content": None},
    )
    assert parts == [
        ("system", "messages[0].content", "Be kind.", PartKind.TEXT),
        ("user", "messages[1].name", "Ann", PartKind.OTHER),
        ("user", "messages[1].content[0].text", "Look", PartKind.TEXT),
        ("user", "messages[1].content[1].image_url", "", PartKind.MEDIA),
        ("assistant", "messages[2].reasoning", "Hm", PartKind.REASONING),
        ("assistant", "messages[2].refusal", "No", PartKind.REFUSAL),
        (
            "assistant",
            "messages[2].tool_calls[0].function.name",
            "look_up",
            PartKind.TOOL_ARGUMENTS,
        ),
        (
            "assistant",
            "messages[2].tool_calls[0].function.arguments",
            '{"a": 1}',
            PartKind.TOOL_ARGUMENTS,
        ),
        ("tool", "messages[3].content", "found", PartKind.TOOL_RESULT),
        ("assistant", "messages[4].audio", "", PartKind.MEDIA),
    ]


def test_definitions_and_unknown_fields_are_read_and_parameters_are_not() -> None:
    parts = parts_of(
        {"role": "user", "content": ""},
        tools=[{"type": "function", "function": {"description": "Looks up", "image": "x y"}}],
        documents=["a text"],
        stop="the end",
        user="Ann Other",
        metadata={"a": "b c"},
        temperature=0.5,
    )
    assert parts == [
        ("request", "tools[0].function.description", "Looks up", PartKind.TOOL_DEFINITION),
        ("request", "tools[0].function.image", "x y", PartKind.TOOL_DEFINITION),
        ("request", "documents[0]", "a text", PartKind.OTHER),
    ]
