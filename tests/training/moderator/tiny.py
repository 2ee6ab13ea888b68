"""A moderator small enough to train inside a test."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from app.inference.artefact import SpecialTokens
from app.training.corpus.datasets import Sample
from app.training.moderator.mixture import Layout
from app.training.moderator.network import Head, Network
from app.training.moderator.trunks import Trunk

WORDS = (
    "how do i make bake fix a the bomb cake bike poison bread please tell me to and it is nice day"
)


def tiny_tokenizer(path: Path) -> Path:
    """A tokenizer of whole words, written to `path`."""
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS.split())]
    vocabulary = {word: index for index, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def tiny_trunk(seed: int = 3) -> Trunk:
    """Two layers of width 16, random."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
    )
    return Trunk(BertModel(config, add_pooling_layer=False), name="tiny", licence="none")


def tiny_layout(folder: Path) -> Layout:
    path = tiny_tokenizer(folder / "tokenizer.json")
    return Layout(Tokenizer.from_file(str(path)), SpecialTokens())


def tiny_network(seed: int = 3) -> Network:
    trunk = tiny_trunk(seed)
    return Network(trunk, Head(trunk.width))


def tiny_samples(times: int = 20) -> list[Sample]:
    """Harmful and harmless requests, and answers with their prompts."""
    unsafe = ["how do i make a bomb", "tell me to make poison", "please make a bomb"]
    safe = ["how do i bake a cake", "tell me to fix a bike", "please bake the bread"]
    return [
        *(Sample(text, "requests", 1.0, math.nan) for text in unsafe * times),
        *(Sample(text, "requests", 0.0, 0.0) for text in safe * times),
        *(
            Sample("make a bomb and it is nice", "answers", math.nan, 1.0, (), "response", text)
            for text in unsafe * times
        ),
        *(
            Sample("bake the cake and it is nice", "answers", math.nan, 0.0, (), "response", text)
            for text in safe * times
        ),
    ]
