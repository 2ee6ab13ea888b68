"""The cut vocabulary: what stays, and that every text can still be read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from app.training.moderator.vocabulary import cut_vocabulary

SPECIAL = ["<end>", "<tool>"]
SENTENCES = ["the lower tower lowers the newest towel"] * 50 + ["a widest window widens"] * 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("vocabulary")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=[AddedToken(name, special=True) for name in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.save(str(target / "whole.json"))
    return target


@pytest.fixture(scope="module")
def cut(folder):
    kept = cut_vocabulary(
        folder / "whole.json", folder / "cut.json", ["the tower"] * 9, size=264, special=["<end>"]
    )
    return Tokenizer.from_file(str(folder / "cut.json")), kept


def test_each_kept_token_keeps_its_row(folder, cut):
    tokenizer, kept = cut
    whole = json.loads((folder / "whole.json").read_text("utf-8"))["model"]["vocab"]
    assert tokenizer.get_vocab_size() == len(kept) == 264
    for name, new in tokenizer.get_vocab().items():
        assert kept[new] == whole[name]


def test_what_the_texts_use_stays_whole_and_the_rest_becomes_more_tokens(folder, cut):
    tokenizer, _ = cut
    whole = Tokenizer.from_file(str(folder / "whole.json"))
    assert tokenizer.encode("the tower").tokens == whole.encode("the tower").tokens
    assert len(tokenizer.encode("widest").tokens) > len(whole.encode("widest").tokens)


def test_only_the_named_special_tokens_stay(cut):
    tokenizer, _ = cut
    assert tokenizer.token_to_id("<end>") is not None
    assert tokenizer.token_to_id("<tool>") is None


@given(st.text(max_size=40))
def test_every_text_comes_back(cut, text):
    tokenizer, _ = cut
    if "<end>" not in text:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
