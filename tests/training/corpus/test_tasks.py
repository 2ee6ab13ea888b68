import random

from app.training.corpus.tasks import TASKS, tasked


def test_the_text_stays_whole_beside_its_task():
    for seed in range(200):
        made = tasked("a text of its own", random.Random(seed))
        assert "a text of its own" in made
        assert len(made) > len("a text of its own") + 10


def test_no_task_asks_for_rules_to_be_dropped():
    assert not [task for task in TASKS if "ignore" in task.lower() or "instruction" in task.lower()]
