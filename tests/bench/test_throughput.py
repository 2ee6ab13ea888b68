import json

import pytest

from bench.throughput import MODES, _part


def bodies(requests):
    return [json.loads(raw.partition(b"\r\n\r\n")[2]) for raw in requests]


def test_a_mode_sends_every_text_once():
    texts = [f"text {number}" for number in range(64)]
    lists, _, singles = (bodies(mode.requests(texts)) for mode in MODES)
    assert [len(body["input"]) for body in lists] == [32, 32]
    assert [text for body in lists for text in body["input"]] == texts
    assert [body["input"] for body in singles] == texts


def test_each_round_is_compared_with_the_bare_session_right_before_it():
    one = {"model_busy": 0.9, "windows_per_text": 1.25}
    ours = {mode: [{"texts_per_s": 90.0, **one}, {"texts_per_s": 40.0, **one}] for mode in MODES}
    part = _part(ours, [100.0, 200.0, 300.0, 50.0, 80.0, 40.0], 256)
    assert [row.result.lowest for row in part.rows] == [0.8, 0.45, 0.3]
    assert [row.result.highest for row in part.rows] == [0.9, 0.5, 1.0]
    assert part.rows[0].theirs == pytest.approx(75.0)
    assert [row.met for row in part.rows] == [False, None, False]
    assert "1.25 windows" in part.notes[0]
    assert part.details["bare_batch_tokens"] == 256
