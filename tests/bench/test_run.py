import json

import pytest

from bench import run
from bench.machine import Machine, this_machine
from bench.process import ProcessEnded
from bench.setup import Setup
from bench.summary import Spread
from bench.table import Aim, Direction, Part, Row


async def fake_part(setup):
    result = Spread(setup.seconds, 1.0, 3.0)
    row = Row("stub", 2.0, 1.0, "ms", result, aim=Aim(Direction.AT_MOST, 5.0))
    return Part((row,), {"numbers": [1, 2]}, ("A note.",))


@pytest.fixture
def stubs(monkeypatch):
    monkeypatch.setattr(run, "PARTS", {"one": fake_part, "two": fake_part})


def test_it_writes_one_file_and_prints_one_table(stubs, tmp_path, capsys):
    arguments = ["--seconds", "2", "--rounds", "1", "--results", str(tmp_path)]
    assert run.main(arguments) == 0
    (file,) = tmp_path.iterdir()
    assert file.name.endswith(f"-{this_machine().slug}.json")
    report = json.loads(file.read_text("utf-8"))
    assert set(report["parts"]) == {"one", "two"}
    assert report["parts"]["one"]["rows"][0]["met"] is True
    assert report["parts"]["one"]["details"] == {"numbers": [1, 2]}
    assert report["setup"]["rounds"] == 1
    printed = capsys.readouterr().out
    assert printed.count("| stub |") == 2
    assert "sluiceway bench --seconds 2" in printed
    assert "avx512_vnni" in printed
    assert "A note." in printed


def test_chosen_parts_do_not_overwrite_a_whole_run(stubs, tmp_path):
    run.main(["--only", "two", "--results", str(tmp_path)])
    (file,) = tmp_path.iterdir()
    assert file.name.endswith("-two.json")
    assert set(json.loads(file.read_text("utf-8"))["parts"]) == {"two"}


def test_a_failure_is_a_message_and_no_file(monkeypatch, tmp_path, capsys):
    async def broken(setup):
        raise ProcessEnded("the guard did not start")

    monkeypatch.setattr(run, "PARTS", {"one": broken})
    assert run.main(["--results", str(tmp_path)]) == 1
    assert "the guard did not start" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unknown_part_is_refused(stubs, capsys):
    with pytest.raises(SystemExit):
        run.main(["--only", "one,three"])
    assert "unknown: three" in capsys.readouterr().err


def test_the_machine_is_named_by_its_parts():
    machine = Machine(8, "cpu", {"avx2": True}, 32.0, "NVIDIA L4 (24 GB)", "3.11", "1.30")
    assert machine.slug == "8cpu-nvidia-l4-24-gb"
    assert "avx2 yes" in machine.describe()


def test_both_sides_get_the_same_setup():
    setup = Setup("models", "cpu", 3, 512, 1.0, 2)
    assert Setup.from_json(setup.to_json()) == setup
    environment = setup.guard_environment()
    assert environment["SLUICEWAY_MODELS__THREADS"] == "3"
    assert environment["SLUICEWAY_MODELS__MAX_BATCH_TOKENS"] == "512"
    assert environment["SLUICEWAY_CACHE__BACKEND"] == "none"
