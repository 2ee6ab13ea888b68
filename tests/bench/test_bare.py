from hypothesis import given
from hypothesis import strategies as st

from bench.bare import batches, latency, throughput


class Counting:
    """Scores nothing; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def score(self, texts):
        self.asked.append(list(texts))
        return 2 * len(texts)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(64, 512))
def test_batches_hold_every_window_in_order_within_the_budget(lengths, budget):
    ordered = [[0] * length for length in sorted(lengths)]
    made = list(batches(ordered, budget))
    assert [window for batch in made for window in batch] == ordered
    assert all(len(batch) == 1 or len(batch[-1]) * len(batch) <= budget for batch in made)


def test_batches_are_full():
    assert [len(batch) for batch in batches([[0] * 10] * 7, 30)] == [3, 3, 1]


def test_throughput_counts_whole_passes():
    session = Counting()
    answer = throughput(session, ["a", "b", "c"], 0.001)
    assert answer["texts"] == 3 * len(session.asked)
    assert answer["windows"] == 2 * answer["texts"]
    assert answer["seconds"] >= 0.001


def test_latency_takes_one_text_after_the_other():
    session = Counting()
    times = latency(session, ["a", "b"], 0.001)["milliseconds"]
    assert len(times) == len(session.asked)
    assert session.asked[:3] == [["a"], ["b"], ["a"]]
