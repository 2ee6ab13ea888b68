import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from app.domain.detection import Gap, Unscanned
from app.domain.errors import ConfigurationError
from app.inference.artefact import SpecialTokens
from app.inference.tokenizer import TextTokenizer
from tests.tiny_model import XLM_R, write_tokenizer

SHIPPED = "models/moderator/tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(pytestconfig):
    return TextTokenizer(pytestconfig.rootpath / SHIPPED)


def read(tokenizer, text):
    return [text[start:end].lower() for start, end in tokenizer.encode(text).offsets]


def test_offsets_are_code_points_of_the_original(tokenizer):
    assert read(tokenizer, "Build 𝄞 a Bömb!") == ["build", "𝄞", "a", "bömb", "!"]


def test_a_word_of_more_than_a_hundred_letters_is_read(tokenizer):
    text = "bomb" * 60
    encoding = tokenizer.encode(text)
    assert "".join(read(tokenizer, text)) == text
    assert encoding.gaps == ()


def test_an_unknown_character_does_not_hide_its_neighbours(tokenizer):
    text = "bomb𓂀bomb"
    assert read(tokenizer, text) == ["bomb", "𓂀", "bomb"]
    assert tokenizer.encode(text).gaps == (Gap(4, 5, Unscanned.UNKNOWN_TOKEN),)


def test_typed_special_tokens_are_text(tokenizer):
    ids = tokenizer.encode("[SEP] [CLS] [PAD] [UNK]").ids
    assert tokenizer.end_id not in ids
    assert tokenizer.padding_id not in ids
    assert tokenizer.encode("[UNK]").gaps == ()


def test_nothing_is_truncated(tokenizer):
    assert len(tokenizer.encode("word " * 5000).ids) == 5000


def test_a_tokenizer_that_truncates_is_refused(tmp_path, pytestconfig):
    content = json.loads((pytestconfig.rootpath / SHIPPED).read_text(encoding="utf-8"))
    content["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="truncates"):
        TextTokenizer(path)


@pytest.fixture
def bytewise(tmp_path):
    marks = ["<pad>", "<s>", "</s>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*marks, *letters])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(marks)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_special_tokens_are_called_as_the_card_says(tmp_path):
    path = tmp_path / "tokenizer.json"
    words = write_tokenizer(path, XLM_R)
    special = SpecialTokens("<s>", "</s>", "</s>", "<pad>", "<unk>")
    made = TextTokenizer(path, special)
    assert [words[i] for i in (made.start_id, made.separator_id, made.end_id, made.padding_id)] == [
        "<s>",
        "</s>",
        "</s>",
        "<pad>",
    ]
    assert made.encode("hello you").gaps == (Gap(6, 9, Unscanned.UNKNOWN_TOKEN),)
    assert not {made.start_id, made.end_id} & set(made.encode("<s> hello </s>").ids)


def test_a_vocabulary_of_bytes_has_no_gaps(bytewise):
    special = SpecialTokens("<s>", "</s>", "</s>", "<pad>", unknown=None)
    made = TextTokenizer(bytewise, special)
    encoding = made.encode("a\U00013080b")
    assert encoding.gaps == ()
    assert set(encoding.offsets) == {(0, 1), (1, 2), (2, 3)}


def test_a_special_token_that_is_not_there_is_named(bytewise):
    with pytest.raises(ConfigurationError, match=r"no token \[CLS\]"):
        TextTokenizer(bytewise)
    with pytest.raises(ConfigurationError, match="no token <unk>"):
        TextTokenizer(bytewise, SpecialTokens("<s>", "</s>", "</s>", "<pad>", "<unk>"))


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="not a tokenizer"):
        TextTokenizer(tmp_path / "tokenizer.json")


@given(st.text(max_size=300))
def test_every_visible_character_is_a_token_or_a_gap(tokenizer, text):
    encoding = tokenizer.encode(text)
    covered = {index for start, end in encoding.offsets for index in range(start, end)}
    # Letters and digits carry text; the normaliser drops control characters and lone accents.
    assert all(index in covered for index, mark in enumerate(text) if mark.isalnum())
