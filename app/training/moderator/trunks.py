"""The encoders that a moderator can be built on, and how a text is laid out for each.

Knows nothing about labels or heads. A trunk turns token ids into hidden states; which package ships
its weights is in `models/moderator/README.md`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from torch import nn
from typing_extensions import override

from app.domain.errors import ConfigurationError
from app.generation.weights import prepare_weights
from app.inference.artefact import SpecialTokens
from app.training.moderator.vocabulary import cut_vocabulary
from app.training.prompt_detector.embeddings import encoder_files
from app.training.prompt_detector.tokenizer_build import build_tokenizer

ATTENTION: Final = "eager"
"""At a few dozen tokens a CPU trains faster with it than with the fused kind; it exports, too."""

BERT: Final = SpecialTokens()
XLM_R: Final = SpecialTokens("<s>", "</s>", "</s>", "<pad>", "<unk>")
SMOLLM2: Final = SpecialTokens(
    "<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>", unknown=None
)


class Trunk(nn.Module):
    """An encoder without its own head. `frozen` of its first layers, and its embeddings, stay."""

    def __init__(self, encoder: Any, *, name: str, licence: str, frozen: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.name = name
        self.licence = licence
        self.width = int(encoder.config.hidden_size)
        layers = getattr(encoder, "layers", None) or encoder.encoder.layer
        self.layers = list(layers)
        self.frozen = frozen
        stay = [encoder.get_input_embeddings(), *self.layers[:frozen]]
        for module in stay:
            module.requires_grad_(requires_grad=False)

    @override
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(batch, length) twice to (batch, length, width)."""
        states: torch.Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    @property
    def cost(self) -> float:
        """Floating-point operations that training takes for a token, attention left out."""
        learnt = sum(e.numel() for layer in self.layers[self.frozen :] for e in layer.parameters())
        frozen = sum(e.numel() for layer in self.layers[: self.frozen] for e in layer.parameters())
        return float(6 * learnt + 2 * frozen)

    def groups(self, rate: float, decay: float) -> list[dict[str, Any]]:
        """Parameters with their learning rates: each layer learns `decay` times the one above."""
        found = []
        known: set[int] = set()
        for depth, layer in enumerate(reversed(self.layers)):
            parameters = [each for each in layer.parameters() if each.requires_grad]
            known.update(map(id, parameters))
            if parameters:
                found.append({"params": parameters, "lr": rate * decay**depth})
        rest = [e for e in self.parameters() if e.requires_grad and id(e) not in known]
        return [*found, {"params": rest, "lr": rate}]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to build a moderator.

    Args:
        name: What the command line calls it.
        special: The tokens around a text.
        load: From a cache folder and the training texts to the trunk and the tokenizer that ships.
        rate: The highest learning rate that was stable on dev.
        large: Whether it is too slow to be the default.
    """

    name: str
    special: SpecialTokens
    load: Callable[[Path, Sequence[str]], tuple[Trunk, Path]]
    rate: float
    large: bool = False


def _minilm(cache: Path, _: Sequence[str]) -> tuple[Trunk, Path]:
    from transformers import AutoModel  # noqa: PLC0415 - seconds to import

    files = encoder_files()
    encoder = AutoModel.from_pretrained(
        files.folder, add_pooling_layer=False, attn_implementation=ATTENTION
    )
    target = cache / "minilm" / "tokenizer.json"
    build_tokenizer(files.tokenizer, target)
    return Trunk(encoder, name="all-MiniLM-L6-v2", licence="Apache-2.0"), target


def _e5(cache: Path, _: Sequence[str]) -> tuple[Trunk, Path]:
    from transformers import AutoModel  # noqa: PLC0415 - seconds to import

    from app.training.moderator.e5 import e5_folder  # noqa: PLC0415 - a candidate among several

    folder = e5_folder(cache)
    encoder = AutoModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation=ATTENTION
    )
    return Trunk(encoder, name="multilingual-e5-small", licence="MIT"), folder / "tokenizer.json"


def _smollm2(
    layers: int, frozen: int, vocabulary: int | None = None
) -> Callable[[Path, Sequence[str]], tuple[Trunk, Path]]:
    """The first layers of the embedded language model, without its last norm and its head.

    With a size of the `vocabulary`, only the tokens that the training texts use most are kept.
    """

    def load(cache: Path, texts: Sequence[str]) -> tuple[Trunk, Path]:
        from transformers import LlamaConfig, LlamaModel  # noqa: PLC0415 - seconds to import

        folder = prepare_weights(cache / "smollm2")
        config = LlamaConfig.from_pretrained(folder)
        config.num_hidden_layers = layers
        encoder = LlamaModel.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation=ATTENTION
        )
        encoder.norm.weight.data.fill_(1.0)  # made for the states of the last layer, not of this
        target = cache / f"smollm2-{layers}-tokenizer.json"
        partial = target.with_suffix(".partial")
        shutil.copyfile(folder / "tokenizer.json", partial)
        _without_bounds(partial)
        if vocabulary:
            special = (SMOLLM2.start, SMOLLM2.end, SMOLLM2.padding)
            kept = cut_vocabulary(partial, partial, texts, size=vocabulary, special=special)
            whole = encoder.embed_tokens
            encoder.embed_tokens = nn.Embedding(vocabulary, whole.embedding_dim)
            encoder.embed_tokens.weight.data = whole.weight.data[torch.from_numpy(kept)]
        partial.rename(target)
        name = f"SmolLM2-135M-Instruct, first {layers} layers"
        return Trunk(encoder, name=name, licence="Apache-2.0", frozen=frozen), target

    return load


def _without_bounds(tokenizer: Path) -> None:
    """Nothing is truncated or padded by a tokenizer that ships."""
    content = json.loads(tokenizer.read_text("utf-8"))
    content["truncation"] = content["padding"] = None
    tokenizer.write_text(json.dumps(content, ensure_ascii=False), "utf-8")


CANDIDATES: Final = {
    candidate.name: candidate
    for candidate in (
        Candidate("minilm", BERT, _minilm, 1.5e-4),
        Candidate("e5", XLM_R, _e5, 1.5e-4),
        Candidate("smollm2-9", SMOLLM2, _smollm2(9, 3, vocabulary=13312), 6e-4),
        Candidate("smollm2-16", SMOLLM2, _smollm2(16, 6), 4e-4, large=True),
    )
}


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer as training uses it: special words in a text are text."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def candidate_of(name: str) -> Candidate:
    """The candidate of that name.

    Raises:
        ConfigurationError: There is none.
    """
    try:
        return CANDIDATES[name]
    except KeyError:
        raise ConfigurationError(f"no encoder {name!r}; there are {list(CANDIDATES)}") from None
