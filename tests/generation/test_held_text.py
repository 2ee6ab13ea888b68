from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.generation.held_text import HeldText
from app.generation.text import TextAssembler

PIECES = [b"a", b"b", b"ab", b" ", b"", "é".encode()[:1], "é".encode()[1:], "→".encode()[:2], b"ba"]
STOPS = [(), ("abb",), ("ba b", "aa")]
# A token, or how many to take back.
MOVES = st.lists(st.one_of(st.sampled_from(PIECES), st.integers(1, 3)), max_size=30)


def said(pieces: list[bytes], stop: tuple[str, ...], *, end: bool = True) -> str:
    """What an assembler says that never saw what was taken back."""
    assembler = TextAssembler(stop)
    return "".join(map(assembler.push, pieces)) + (assembler.flush() if end else "")


@given(MOVES, st.integers(0, 8), st.sampled_from(STOPS))
def test_what_was_taken_back_was_never_there(
    moves: list[bytes | int], tokens: int, stop: tuple[str, ...]
) -> None:
    text, pieces, sent, budget = HeldText(stop, tokens), [], "", tokens
    for move in moves:
        if isinstance(move, int):
            if move <= min(budget, len(pieces)) and not text.stopped:
                text.take_back(move)
                del pieces[len(pieces) - move :]
                budget -= move
        elif not text.stopped:
            pieces.append(move)
            sent += text.push(move)
        assert sent == said(pieces[: max(0, len(pieces) - budget)], stop, end=False)
    assert sent + text.flush() == said(pieces, stop)


def test_a_stop_string_is_seen_before_its_text_could_leave() -> None:
    text = HeldText(("stop",), 10)

    assert [text.push(piece) for piece in (b"so ", b"st", b"op", b"!")] == ["", "", "", ""]

    assert text.stopped
    assert text.flush() == "so "
