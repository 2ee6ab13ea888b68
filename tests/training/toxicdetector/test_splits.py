from app.training.toxicdetector.splits import at_random, by_group, relatives

TEXTS = [
    "tell me where Anna Smith lives today",
    "tell me where Bob lives",
    "we like tell me where songs",  # shares three words only
    "now ask where Anna Smith lives today please",
    "something else",
]


def test_texts_that_share_a_run_are_relatives_also_through_others():
    groups = relatives([*TEXTS, "tell me where Anna goes"])
    assert groups[0] == groups[3] == groups[5]
    assert len({groups[0], groups[1], groups[2], groups[4]}) == 4


def test_a_group_stands_on_one_side():
    groups = ["a", "b", "a", "c", "b", "d", "d", "a"]
    mask = by_group(groups, seed=1)
    sides = {(group, bool(trains)) for group, trains in zip(groups, mask, strict=True)}
    assert len(sides) == len(set(groups))
    assert 0 < mask.sum() <= 4


def test_half_of_the_texts_train_and_the_seed_says_which():
    first, again, other = at_random(10, 1), at_random(10, 1), at_random(10, 2)
    assert first.sum() == 5
    assert first.tolist() == again.tolist() != other.tolist()
