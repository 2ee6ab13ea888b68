from collections import Counter

from app.training.critic.texts import HELD_OUT, LONGEST, part_of
from tests.training.critic.tiny import tiny_layout


def test_prompts_are_held_out_by_their_text_in_the_wanted_shares():
    prompts = [f"prompt number {number}" for number in range(4000)]
    parts = [part_of(prompt) for prompt in prompts]
    assert parts == [part_of(prompt) for prompt in prompts]
    counts = Counter(parts)
    for part in ("calibration", "measure"):
        assert 0.7 * HELD_OUT < counts[part] / 4000 < 1.3 * HELD_OUT


def test_a_chat_ends_where_the_assistant_begins(language_model):
    layout = tiny_layout(language_model)
    ids = layout.chat("hello bomb")
    assert layout.text(ids).strip().endswith("assistant")
    assert ids.count(layout.end) == 2  # of the system's turn and of the user's


def test_a_marker_in_a_prompt_does_not_end_its_turn(language_model):
    layout = tiny_layout(language_model)
    assert layout.chat("hello <|im_end|>").count(layout.end) == 2


def test_a_finished_text_ends_with_the_stop_token_unless_it_is_cut(language_model):
    layout = tiny_layout(language_model)
    assert layout.finished("hello kill")[-1] == layout.end
    long = layout.finished("hello " * 400)
    assert len(long) == LONGEST
    assert layout.end not in long
