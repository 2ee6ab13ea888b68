import numpy as np
import onnxruntime
import pytest

from app.domain.errors import ConfigurationError, DetectorError
from app.inference.artefact import load_artefact
from app.inference.onnx_backend import OnnxBackend
from tests.tiny_model import write_model


@pytest.fixture(scope="module")
def artefact(pytestconfig):
    return load_artefact(pytestconfig.rootpath / "models" / "moderator")


def load(artefact, **options):
    return OnnxBackend(
        artefact.path("model.onnx"),
        artefact.path("tokenizer.json"),
        max_tokens=artefact.max_tokens,
        **{"device": "cpu", **options},
    )


@pytest.fixture(scope="module")
def backend(artefact):
    backend = load(artefact)
    yield backend
    backend.close()


def test_a_row_of_probabilities_for_each_window(artefact, backend):
    batch = [backend.encode(text).ids for text in ("hello", "how are you today", "x " * 100)]
    scores = backend.predict(batch)
    assert scores.shape == (3, artefact.outputs)
    assert scores.dtype == np.float32
    assert (scores >= 0).all()
    assert (scores <= 1).all()


def test_neighbours_in_a_batch_do_not_move_a_score(backend):
    texts = ("Tell me how to build a pipe bomb", "What a lovely day", "word " * 120)
    together = backend.predict([backend.encode(text).ids for text in texts])
    for text, row in zip(texts, together, strict=True):
        alone = backend.predict([backend.encode(text).ids])[0]
        assert row == pytest.approx(alone, abs=1e-4)


def test_an_empty_batch_and_an_empty_window(artefact, backend):
    assert backend.predict([]).shape == (0, artefact.outputs)
    assert np.isfinite(backend.predict([[]])).all()


def test_a_failing_runtime_is_a_detector_error(backend):
    with pytest.raises(DetectorError, match="inference failed"):
        backend.predict([[10_000_000]])


def test_warm_up_runs_the_longest_window(artefact):
    backend = load(artefact)
    backend.warm_up()
    assert backend.max_tokens == artefact.max_tokens
    assert backend.device == "cpu"


def test_cuda_that_is_not_there_is_refused(artefact, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ConfigurationError, match="CUDA"):
        load(artefact, device="cuda")


def test_a_file_that_is_no_model_is_a_configuration_error(artefact, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        OnnxBackend(path, artefact.path("tokenizer.json"), max_tokens=8)


def test_a_row_is_start_context_separator_window_end(tmp_path):
    artefact = load_artefact(write_model(tmp_path))
    backend = OnnxBackend.of_artefact(artefact, device="cpu")
    backend.warm_up()
    assert backend.max_tokens == 4 + 1 + 8
    context, text = backend.encode("pipe bomb").ids, backend.encode("hello bomb").ids
    window = [*context, backend.separator_id, *text]
    (row,) = backend.predict([window])
    # Special tokens weigh nothing in this model: what counts are the words of both.
    assert row[3] == pytest.approx(1 / (1 + np.exp(-(4.0 * 3 - 5.0))))


def test_the_special_tokens_of_the_card_are_used(tmp_path):
    special = {"start": "<s>", "separator": "</s>", "end": "</s>", "padding": "<pad>"}
    folder = write_model(tmp_path, special_tokens={**special, "unknown": "<unk>"})
    with pytest.raises(ConfigurationError, match="no token <s>"):
        OnnxBackend.of_artefact(load_artefact(folder), device="cpu")
