import os

from bench.server import Guard, Work, _total

METRICS = """\
# TYPE guardrail_batch_size histogram
guardrail_batch_size_bucket{detector="a",le="1.0"} 3.0
guardrail_batch_size_count{detector="a"} 3.0
guardrail_batch_size_sum{detector="a"} 7.0
guardrail_batch_size_sum{detector="b"} 2.5
guardrail_inference_seconds_sum 1e-05
"""


def test_a_total_sums_over_labels():
    assert _total(METRICS, "guardrail_batch_size_sum") == 9.5
    assert _total(METRICS, "guardrail_inference_seconds_sum") == 1e-05
    assert _total(METRICS, "guardrail_batch_size") == 0


def test_memory_is_what_the_kernel_says_of_the_process():
    memory = Guard(port=0, pid=os.getpid(), ready_s=0.0).memory()
    assert 1 < memory.resident <= memory.peak


def test_work_since_earlier_is_the_difference():
    assert Work(5.0, 80.0, 0.75).since(Work(2.0, 30.0, 0.25)) == Work(3.0, 50.0, 0.5)
