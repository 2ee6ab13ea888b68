from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.categories import Category
from app.domain.conversation import PartKind
from app.domain.detection import Detection
from app.proxy.dialects.fields import Fields, Rules, TooDeep

RULES = Rules(
    kinds={"content": PartKind.TEXT, "thinking": PartKind.REASONING},
    media=frozenset({"image"}),
    metadata=frozenset({"id"}),
)


def fields_of(*documents: Any, streamed: bool = False) -> Fields:
    fields = Fields(RULES, streamed=streamed)
    for document in documents:
        fields.add([document], 0, "it", PartKind.OTHER)
    return fields


def found(path: str, start: int, end: int) -> Detection:
    return Detection("d", Category.SECRETS, 1.0, start, end, "key", path)


def test_strings_are_found_with_path_and_kind() -> None:
    document = {
        "content": [{"text": "a"}, "b"],
        "thinking": {"steps": ["c"]},
        "n": 1,
        "no": None,
        "empty": "",
    }
    parts = fields_of(document).parts()
    assert [(part.path, part.text, part.kind) for part in parts] == [
        ("it.content[0].text", "a", PartKind.TEXT),
        ("it.content[1]", "b", PartKind.TEXT),
        ("it.thinking.steps[0]", "c", PartKind.REASONING),
    ]


def test_short_words_under_metadata_keys_are_left_out_but_no_texts() -> None:
    assert fields_of({"id": "call_1-a"}).parts() == ()
    assert len(fields_of({"id": "two words"}).parts()) == 1
    assert len(fields_of({"id": "x" * 65}).parts()) == 1


def test_of_media_only_the_bytes_are_left_out() -> None:
    for image in (
        {"url": "data:image/png;base64,AAAA", "title": "see"},
        {"data": "AAAA", "title": "see"},
    ):
        parts = fields_of({"image": image}).parts()
        assert [(part.path, part.kind) for part in parts] == [
            ("it.image.title", PartKind.OTHER),
            ("it.image", PartKind.MEDIA),
        ]
    assert [part.text for part in fields_of({"data": "see"}).parts()] == ["see"]
    assert fields_of({"image": None}).parts() == ()


def test_a_key_that_is_text_does_not_enter_a_path() -> None:
    [part] = fields_of({"a": 1, "my dear secret": "x"}).parts()
    assert part.path == "it.{1}"


def test_pieces_at_one_path_are_one_text_and_are_redacted_as_one() -> None:
    first = [{"index": 4, "text": "my sec"}]
    second = [{"index": 4, "text": "ret is"}, {"index": 5, "text": "other"}]
    fields = fields_of(first, second, streamed=True)
    texts = {part.path: part.text for part in fields.parts()}
    assert texts == {"it[4].text": "my secret is", "it[5].text": "other"}
    fields.rewrite([found("it[4].text", 3, 9), found("elsewhere", 0, 1)])
    assert first == [{"index": 4, "text": "my [KEY] is"}]
    assert second == [{"index": 4, "text": ""}, {"index": 5, "text": "other"}]


def test_an_index_of_the_callers_own_joins_nothing() -> None:
    # Put together, the two would hide a word from whoever looks for whole words.
    items = [{"index": 0, "text": "bomb"}, {"index": 0, "text": "astic"}]
    assert [part.text for part in fields_of(items).parts()] == ["bomb", "astic"]


def test_nesting_has_a_limit() -> None:
    document: Any = "x"
    for _ in range(70):
        document = {"a": document}
    with pytest.raises(TooDeep):
        fields_of(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4).filter(lambda k: k not in {"id", "image"}), inner)
    ),
    max_leaves=20,
)


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value
    return (
        [s for child in children for s in strings(child)] if isinstance(value, dict | list) else []
    )


@given(JSON)
def test_every_string_of_any_document_is_seen(document: Any) -> None:
    seen = "".join(part.text for part in fields_of(document).parts())
    assert sorted(seen) == sorted("".join(strings(document)))
