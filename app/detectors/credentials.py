"""Finds keys, tokens and passwords, by the prefix of their issuer or by what they are assigned to.

Knows nothing about overlaps. Whether a credential works is not tried, only whether it looks real:
words joined by dashes, references to a variable and placeholders are not credentials.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from app.detectors.spans import PiiLabel, Span, matches, occurrences


class _Format(NamedTuple):
    """What begins with `prefix` and goes on as `pattern` demands is a credential.

    A format of open length must look random as well: anybody may begin a name with `sk-`.
    """

    prefix: str
    pattern: re.Pattern[str]
    label: PiiLabel
    is_open: bool


def _fixed(prefix: str, alphabet: str, length: int, label: PiiLabel) -> _Format:
    pattern = rf"(?<![A-Za-z0-9_-]){prefix}[{alphabet}]{{{length}}}(?![A-Za-z0-9])"
    return _Format(prefix, re.compile(pattern), label, is_open=False)


def _open(prefix: str, alphabet: str, shortest: int, label: PiiLabel) -> _Format:
    # Possessive repetition: the tail is read once, however long it is.
    pattern = rf"(?<![A-Za-z0-9_-]){prefix}[{alphabet}]{{{shortest},}}+"
    return _Format(prefix, re.compile(pattern), label, is_open=True)


_FORMATS: Final = (
    _open("sk-", "A-Za-z0-9_-", 20, PiiLabel.API_KEY),  # OpenAI, Anthropic and others
    _fixed("AKIA", "A-Z0-9", 16, PiiLabel.API_KEY),  # AWS, lasting
    _fixed("ASIA", "A-Z0-9", 16, PiiLabel.API_KEY),  # AWS, temporary
    _fixed("AIza", "A-Za-z0-9_-", 35, PiiLabel.API_KEY),  # Google
    _open("sk_live_", "A-Za-z0-9", 16, PiiLabel.API_KEY),  # Stripe
    _open("sk_test_", "A-Za-z0-9", 16, PiiLabel.API_KEY),
    _open("rk_live_", "A-Za-z0-9", 16, PiiLabel.API_KEY),
    _fixed("ghp_", "A-Za-z0-9", 36, PiiLabel.TOKEN),  # GitHub
    _fixed("gho_", "A-Za-z0-9", 36, PiiLabel.TOKEN),
    _fixed("ghu_", "A-Za-z0-9", 36, PiiLabel.TOKEN),
    _fixed("ghs_", "A-Za-z0-9", 36, PiiLabel.TOKEN),
    _fixed("ghr_", "A-Za-z0-9", 36, PiiLabel.TOKEN),
    _open("github_pat_", "A-Za-z0-9_", 22, PiiLabel.TOKEN),
    _open("glpat-", "A-Za-z0-9_.-", 20, PiiLabel.TOKEN),  # GitLab
    *(_open(f"xox{kind}-", "A-Za-z0-9-", 10, PiiLabel.TOKEN) for kind in "abeoprs"),  # Slack
    _fixed("hf_", "A-Za-z0-9", 34, PiiLabel.TOKEN),  # Hugging Face
    _fixed("npm_", "A-Za-z0-9", 36, PiiLabel.TOKEN),
)

_JWT: Final = re.compile(
    # A token that the end of the text cuts off counts: in a stream the rest is still to come.
    r"(?<![A-Za-z0-9_-])(eyJ[A-Za-z0-9_-]++)\.[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]*+|\Z)"
)

_PEM_HEADER: Final = re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_FOOTER: Final = re.compile(r"-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
# A key that was cut off: whole lines of base64, line ends perhaps escaped as in JSON.
_PEM_LINES: Final = re.compile(r"(?:(?:\s|\\[nr]){0,4}[A-Za-z0-9+/=]{24,}+)++")
_PEM_CHARS: Final = (40, 20_000)

_ASSIGNED_WORDS: Final = ("passw", "pwd", "passphrase", "secret", "token", "key")
_ASSIGNED: Final = re.compile(
    r"(?:(?P<password>passw(?:or[dt]|d)|pwd|passphrase)|(?P<token>token)"
    r"|secret|(?:api|access|account|auth|secret)[ _-]?key)"
    r"""\\?["'`]?\s{0,4}(?::=|=>|==?|:|\bis\b:?)\s{0,4}\\?"""
    r"""(?:"(?P<double>[^\s"\\]{6,}+)|'(?P<single>[^\s'\\]{6,}+)|`?(?P<bare>[^\s"'`,;<>&\\]{6,}+))""",
    re.IGNORECASE,
)
_BEARER: Final = re.compile(r"earer\s{1,4}(?P<bare>[A-Za-z0-9._~+/-]{20,}+=*)")
_URL_PASSWORD: Final = re.compile(
    r"""://[^\s/:@"'<>]{0,100}:(?P<bare>[^\s/@"'<>]{3,200})@[A-Za-z0-9\[]"""
)

_MIXED: Final = re.compile(r"(?<=[A-Za-z])[0-9]|(?<=[0-9])[A-Za-z]")
# Not a value: a variable, a call, a name with a dot, a stand-in, or the name of an algorithm.
_REFERENCE: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_PLACEHOLDER: Final = re.compile(
    r"^[<$%*]|[(\[{]|your|example|placeholder|redacted|xxx|\*\*\*|\.\.\."
    r"|sha-?[0-9]|md5|argon2|pbkdf2|base64|utf-?8",
    re.IGNORECASE,
)
_PLAIN_PASSWORDS: Final = frozenset({"pass", "password", "passwd", "pwd", "secret", "pw"})
_KEY_LENGTH: Final = 16
_KEY_LETTERS: Final = 8


def find_credentials(text: str) -> Iterator[Span]:
    """Every span of a credential; spans may overlap."""
    for known in _FORMATS:
        if known.prefix in text:
            yield from _formatted(known, text)
    if "eyJ" in text:
        yield from _json_web_tokens(text)
    if "-----BEGIN " in text:
        yield from _private_keys(text)
    lowered = text.lower()
    if any(word in lowered for word in _ASSIGNED_WORDS):
        yield from _assigned(text)
    if "earer" in text:
        for match in matches(_BEARER, text):
            if _is_random(match["bare"]):
                yield Span(*match.span("bare"), PiiLabel.TOKEN)
    if "://" in text:
        yield from _url_passwords(text)


def _formatted(known: _Format, text: str) -> Iterator[Span]:
    reached = 0
    for start in occurrences(known.prefix, text):
        match = known.pattern.match(text, start) if start >= reached else None
        if match is not None:
            reached = match.end()
            if not known.is_open or _is_random(match[0]):
                yield Span(*match.span(), known.label)


def _json_web_tokens(text: str) -> Iterator[Span]:
    for start in occurrences("eyJ", text):
        match = _JWT.match(text, start)
        if match is not None and _is_jwt_header(match[1]):
            yield Span(*match.span(), PiiLabel.TOKEN)


def _is_jwt_header(encoded: str) -> bool:
    try:
        header = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return False
    return isinstance(header, dict) and "alg" in header


def _private_keys(text: str) -> Iterator[Span]:
    shortest, longest = _PEM_CHARS
    reached = 0
    for start in occurrences("-----BEGIN ", text):
        header = _PEM_HEADER.match(text, start) if start >= reached else None
        if header is None:
            continue
        body = header.end()
        footer = _PEM_FOOTER.search(text, body, body + longest)
        lines = _PEM_LINES.match(text, body)
        last = footer if footer and footer.start() - body >= shortest else lines
        if last is not None:
            reached = last.end()
            yield Span(start, reached, PiiLabel.PRIVATE_KEY)


def _assigned(text: str) -> Iterator[Span]:
    for match in matches(_ASSIGNED, text):
        group = match.lastgroup or ""
        value = match[group]
        if group == "bare":
            value = value.rstrip(".)]}")
            if _REFERENCE.fullmatch(value):
                continue
        if match["password"]:
            label, is_real = PiiLabel.PASSWORD, _MIXED.search(value) is not None
        else:
            label = PiiLabel.TOKEN if match["token"] else PiiLabel.API_KEY
            is_real = _is_random(value)
        if is_real and not _PLACEHOLDER.search(value):
            yield Span(match.start(group), match.start(group) + len(value), label)


def _url_passwords(text: str) -> Iterator[Span]:
    for start in occurrences("://", text):
        match = _URL_PASSWORD.match(text, start)
        if match is None or match["bare"].lower() in _PLAIN_PASSWORDS:
            continue
        if not _PLACEHOLDER.search(match["bare"]):
            yield Span(*match.span("bare"), PiiLabel.PASSWORD)


def _is_random(value: str) -> bool:
    """Long, of many different characters, letters and digits in no order."""
    return (
        len(value) >= _KEY_LENGTH
        and len(set(value)) >= _KEY_LETTERS
        and len(_MIXED.findall(value)) > 1
    )
