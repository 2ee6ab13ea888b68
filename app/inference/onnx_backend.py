"""Runs an exported model with ONNX Runtime, on the CPU or on CUDA.

Knows nothing about categories: rows of token ids in, rows of scores out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from app.domain.errors import ConfigurationError, DetectorError
from app.inference.artefact import Artefact, SpecialTokens
from app.inference.backend import Encoding
from app.inference.tokenizer import TextTokenizer

Device = Literal["auto", "cpu", "cuda"]

_CUDA: Final = "CUDAExecutionProvider"
_CPU: Final = "CPUExecutionProvider"


class OnnxBackend:
    """One session. Inputs `input_ids` and `attention_mask`, output `scores`."""

    def __init__(
        self,
        model: Path,
        tokenizer: Path,
        *,
        max_tokens: int,
        device: Device = "auto",
        intra_op_threads: int = 1,
        special_tokens: SpecialTokens | None = None,
    ) -> None:
        """Load the model.

        Raises:
            ConfigurationError: CUDA was asked for and is not there, or the model cannot be loaded.
        """
        self._max_tokens = max_tokens
        self._tokenizer = TextTokenizer(tokenizer, special_tokens)
        self._session: Any = _session(model, _providers(device), intra_op_threads)
        self._outputs = int(self._session.get_outputs()[0].shape[1])

    @classmethod
    def of_artefact(
        cls, artefact: Artefact, *, device: Device = "auto", intra_op_threads: int = 1
    ) -> Self:
        """Load the model of a folder, as its card says. Raises as the constructor does."""
        return cls(
            artefact.path("model.onnx"),
            artefact.path("tokenizer.json"),
            max_tokens=artefact.max_tokens,
            device=device,
            intra_op_threads=intra_op_threads,
            special_tokens=artefact.special_tokens,
        )

    @property
    def max_tokens(self) -> int:
        """The longest window that `predict` takes, special tokens not counted."""
        return self._max_tokens

    @property
    def separator_id(self) -> int:
        """The token that stands between a context and the text that it belongs to."""
        return self._tokenizer.separator_id

    @property
    def device(self) -> str:
        """Where the model really runs: `cuda` or `cpu`."""
        return "cuda" if _CUDA in self._session.get_providers() else "cpu"

    def encode(self, text: str) -> Encoding:
        """All of `text` as tokens: never truncated."""
        return self._tokenizer.encode(text)

    def predict(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """One row of scores for each window of token ids, in order."""
        if not batch:
            return np.zeros((0, self._outputs), np.float32)
        longest = max(len(window) for window in batch) + 2
        ids = np.full((len(batch), longest), self._tokenizer.padding_id, np.int64)
        mask = np.zeros_like(ids)
        for row, window in enumerate(batch):
            ids[row, : len(window) + 2] = (
                self._tokenizer.start_id,
                *window,
                self._tokenizer.end_id,
            )
            mask[row, : len(window) + 2] = 1
        try:
            (scores,) = self._session.run(["scores"], {"input_ids": ids, "attention_mask": mask})
        except Exception as exc:  # the runtime raises a dozen types without a common root
            raise DetectorError(f"inference failed: {type(exc).__name__}") from exc
        result: NDArray[np.float32] = scores
        return result

    def warm_up(self) -> None:
        """Run the shortest and the longest window once."""
        window = self.encode("warm up").ids
        self.predict([window])
        self.predict([(window * self._max_tokens)[: self._max_tokens]] * 2)

    def close(self) -> None:
        """Give the session back."""
        self._session = None


def _providers(device: Device) -> list[str]:
    has_cuda = _CUDA in ort.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise ConfigurationError("CUDA was asked for, but this ONNX Runtime has no CUDA provider")
    return [_CUDA, _CPU] if has_cuda and device != "cpu" else [_CPU]


def _session(model: Path, providers: list[str], threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads that spin would take the core from the event loop; a growing arena would keep
    # the memory of the largest batch for ever.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(model), options, providers=providers)
    except Exception as exc:  # as above: no common root
        raise ConfigurationError(f"{model} cannot be loaded: {type(exc).__name__}") from exc
