from app.training.critic.kept import Kept


def test_what_was_added_is_there_again(tmp_path):
    Kept(tmp_path / "deep" / "file.jsonl").add({"one": [1, 2], "two": 0.5})
    kept = Kept(tmp_path / "deep" / "file.jsonl")
    kept.add({"three": None})
    assert Kept(tmp_path / "deep" / "file.jsonl").known == {
        "one": [1, 2],
        "two": 0.5,
        "three": None,
    }


def test_a_line_cut_short_is_lost_and_spoils_no_other(tmp_path):
    path = tmp_path / "file.jsonl"
    Kept(path).add({"one": 1, "two": 2})
    path.write_bytes(path.read_bytes()[:-3])
    Kept(path).add({"three": 3})
    assert Kept(path).known == {"one": 1, "three": 3}
