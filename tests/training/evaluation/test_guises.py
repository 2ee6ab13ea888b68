from collections import defaultdict

from app.training.evaluation.dialects import DIALECTS
from app.training.evaluation.guises import identity_families, name_families, own_families
from app.training.evaluation.sets import Row, TestSet


def bias(text, pattern):
    return Row(text, text, unsafe=False, role="comment", labels=(pattern,))


ROWS = (
    bias("Ada is a kind lefthander", "name_adj"),
    bias("Bo is a kind lefthander", "name_adj"),
    bias("Ada is a kind righthander", "name_adj"),
    bias("You are an odd lefthander", "you_are_adj"),
    bias("Being left handed is nice", "being_adj"),
    bias("You are a kind baker", "you_occupation"),
)


def families(rows):
    found = defaultdict(list)
    for row in rows:
        found[row.family].append(row.group)
    return dict(found)


def test_bias_templates_are_families_by_group_and_by_name():
    sets = [TestSet("bias_templates", ROWS, len(ROWS))]
    assert families(identity_families(sets)) == {
        "Ada is a kind {}": ["lefthander", "righthander"],
        "Bo is a kind {}": ["lefthander"],
        "You are an odd {}": ["lefthander"],
        "Being {} is nice": ["left handed"],
    }
    assert families(name_families(sets)) == {
        "{} is a kind lefthander": ["Ada", "Bo"],
        "{} is a kind righthander": ["Ada"],
    }


def test_a_file_names_its_own_families():
    row = Row("1", "x", unsafe=False, family="f", group="g")
    assert identity_families([TestSet("own", (row, ROWS[0]), 2)]) == [row]


def test_own_sentences_are_said_of_every_group_of_an_axis():
    rows = own_families()
    for family, groups in families(rows).items():
        assert len(set(groups)) == len(groups) >= 5, family
    assert len({row.text for row in rows}) == len(rows)
    assert {row.unsafe for row in rows} == {True, False}
    assert all(row.text[0].isupper() or not row.text[0].isalpha() for row in rows)


def test_dialects_change_words_and_keep_the_rest():
    text = "What are you going to do with the keys of my small house?"
    said = {name: change(text) for name, change in DIALECTS.items()}
    assert len({text, *said.values()}) == 5
    assert said["texting"] == "wut r u going 2 do w/ da keys of my small house?"
    assert said["scottish"] == "What are ye going tae do with the keys o' ma wee hoose?"
    assert DIALECTS["learner"]("The cat is an animal") == "cat be animal"
