import pytest

from app.domain.normalization.spaced import spaced
from app.domain.normalization.view import View, ViewName, rewrite


def read(text):
    return rewrite(View(ViewName.PLAIN, text), spaced(text)).text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a plan: b o m b!", "a plan: bomb!"),
        ("b.o.m.b", "bomb"),
        ("b-o-m-b p-l-a-n", "bomb plan"),
        ("b o m b   p l a n", "bomb plan"),
        ("k  i  l  l", "kill"),
        ("g - u - n", "gun"),
        ("k\ni\nl\nl", "kill"),
        ("b 0 m b", "bomb"),
        ("g o  t o  h e l l", "go to hell"),
        ("h o w t o m a k e a b o m b", "how to make a bomb"),
        ("z q x w v", "zqxwv"),
        ("I a m", "I am"),
        ("б о м б а", "бомба"),
    ],
)
def test_single_letters_are_joined(given, said):
    assert read(given) == said


@pytest.mark.parametrize(
    "text",
    ["the U.S.A. is", "1 2 3 4 5", "a big x or y", "e.g. this", "? ? ? ?", "mid-air"],
)
def test_other_writing_is_left_alone(text):
    assert spaced(text) == []


def test_every_letter_keeps_its_place():
    view = rewrite(View(ViewName.PLAIN, "so k i l l him"), spaced("so k i l l him"))
    assert view.text == "so kill him"
    assert view.to_original(3, 7) == (3, 10)
    assert view.to_original(4, 5) == (5, 6)
