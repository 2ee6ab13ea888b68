"""Finds e-mail addresses, IBANs, payment cards, US social security numbers and phone numbers.

Knows nothing about credentials or overlaps. A shape alone is never enough: checksums, issuer
prefixes and numbering plans decide. IP addresses are left out: talk about code is full of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import phonenumbers
import stdnum.iban
import stdnum.luhn
import stdnum.us.ssn

from app.detectors.spans import PiiLabel, Span, matches, occurrences

_DASH: Final = r"\u2010-\u2013-"
_BLANK: Final = r" \u00a0\u202f"
_NO_DIGITS_BEFORE: Final = r"(?<![0-9A-Za-z_])(?<![0-9][.,:/-])"
_NO_DIGITS_AFTER: Final = r"(?![0-9A-Za-z_]|[.,:/-][0-9])"

# Seven digits that stand together: without them there is no number worth a closer look.
_DIGITS: Final = re.compile(rf"[0-9](?:[{_BLANK}().{_DASH}/]{{0,3}}[0-9]){{6}}")

_LOCAL_REVERSED: Final = re.compile(r"[A-Za-z0-9._%+'-]{1,64}")
_DOMAIN: Final = re.compile(r"@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])")
_RETINA: Final = re.compile(r"@[1-9]x\.")  # icon@2x.png is a picture

_IBAN_HEAD: Final = re.compile(r"(?<![0-9A-Za-z])[A-Za-z]{2}[0-9]{2}(?=[ -]?[0-9A-Za-z])")
_IBAN_TABLE: Final = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 "
    "EE20 EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 "
    "IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 "
    "NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TL23 "
    "TN24 TR26 UA29 VA22 VG24 XK20"
)
_IBAN_LENGTHS: Final = {entry[:2]: int(entry[2:]) for entry in _IBAN_TABLE.split()}

_CARD: Final = re.compile(
    _NO_DIGITS_BEFORE + rf"(?:[0-9]{{14,19}}"
    rf"|[0-9]{{4}}([{_BLANK}{_DASH}])[0-9]{{4}}\1[0-9]{{4}}\1[0-9]{{4}}(?:\1[0-9]{{3}})?"
    rf"|[0-9]{{4}}([{_BLANK}{_DASH}])[0-9]{{6}}\2[0-9]{{4,5}})" + _NO_DIGITS_AFTER
)
# How the numbers of each length begin. Thirteen digits are left out: old Visa numbers had them, the
# bar codes of today have them.
_ISSUERS: Final = {
    14: re.compile(r"36|38|39|30[0-5]"),  # Diners Club
    15: re.compile(r"34|37"),  # American Express
    16: re.compile(
        r"4"  # Visa
        r"|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"  # Mastercard
        r"|6011|64[4-9]|65|62|352[89]|35[3-8]"  # Discover, UnionPay, JCB
        r"|5018|5020|5038|5893|6304|6759|676[1-3]"  # Maestro
    ),
    19: re.compile(r"4|62"),  # Visa, UnionPay
}

_SSN: Final = re.compile(_NO_DIGITS_BEFORE + r"[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}" + _NO_DIGITS_AFTER)

_JOINT: Final = rf"[{_BLANK}().{_DASH}/]{{0,3}}"
_INTERNATIONAL: Final = re.compile(
    rf"(?<![0-9A-Za-z_+])(?:\+{_JOINT}|00[{_BLANK}]?)[1-9](?:{_JOINT}[0-9]){{6,14}}(?![0-9_])"
)
_NORTH_AMERICAN: Final = re.compile(
    rf"(?<![0-9A-Za-z_])(?<![0-9][.,:/-])(?:1[{_BLANK}.-])?"
    rf"(?:\([2-9][0-9]{{2}}\)[{_BLANK}-]?|[2-9][0-9]{{2}}[{_BLANK}.{_DASH}])"
    rf"[2-9][0-9]{{2}}[{_BLANK}.{_DASH}][0-9]{{4}}(?![0-9_]|[.,:/-][0-9])"
)
# Great Britain and Germany: an area code with its zero, then groups of two and more.
_EUROPEAN: Final = re.compile(
    rf"(?<![0-9A-Za-z_])(?<![0-9][.,:/-])\(?0[1-9][0-9]{{1,4}}\)?[{_BLANK}]?[{_BLANK}/{_DASH}]"
    rf"[{_BLANK}]?[0-9]{{2,8}}(?:[{_BLANK}{_DASH}][0-9]{{2,8}}){{0,4}}(?![0-9A-Za-z_]|[.,:/][0-9])"
)
_UNBROKEN: Final = re.compile(_NO_DIGITS_BEFORE + r"[0-9]{10,14}" + _NO_DIGITS_AFTER)
_BRITISH_MOBILE: Final = re.compile(r"07[0-9]{9}")
_PHONE_WORD: Final = re.compile(
    r"\b(?:phone|telephone|tel|call|dial|ring|text me|sms|mobile|cell|fax|whatsapp"
    r"|telefon|handy|anrufen|mobil)\b",
    re.IGNORECASE,
)
_PHONE_WORD_REACH: Final = 30
_LAST_GROUP: Final = re.compile(r"[^0-9+]+[0-9]+$")
_PHONE_DIGITS: Final = 7


def find_personal_data(text: str) -> Iterator[Span]:
    """Every span of personal data; spans of different labels may overlap."""
    if "@" in text:
        yield from _emails(text)
    if next(matches(_DIGITS, text), None) is None:
        return
    yield from _ibans(text)
    yield from _cards(text)
    for match in matches(_SSN, text):
        if stdnum.us.ssn.is_valid(match[0]):
            yield Span(*match.span(), PiiLabel.SSN)
    for start, end in _phones(text):
        yield Span(start, end, PiiLabel.PHONE)


def _emails(text: str) -> Iterator[Span]:
    for at in occurrences("@", text):
        domain = _DOMAIN.match(text, at)
        # Read backwards from the sign: forwards, each letter of a long word would be a start.
        local = _LOCAL_REVERSED.match(text[max(0, at - 64) : at][::-1])
        if domain is None or local is None or _RETINA.match(text, at):
            continue
        name = local[0][::-1].lstrip(".-%+'")
        is_repository = name == "git" and text[domain.end() : domain.end() + 1] == ":"
        if name and not is_repository:
            yield Span(at - len(name), domain.end(), PiiLabel.EMAIL)


def _ibans(text: str) -> Iterator[Span]:
    for head in matches(_IBAN_HEAD, text):
        length = _IBAN_LENGTHS.get(head[0][:2].upper(), 0)
        end = _end_of_group(text, head.start(), length)
        if end and stdnum.iban.is_valid(text[head.start() : end]):
            yield Span(head.start(), end, PiiLabel.IBAN)


def _end_of_group(text: str, start: int, length: int) -> int:
    """Where `length` letters and digits end, single blanks and dashes between them; 0: nowhere."""
    place, seen = start, 0
    while seen < length and place < len(text):
        letter = text[place]
        if letter.isascii() and letter.isalnum():
            seen += 1
        elif letter not in " -\u00a0\u202f" or text[place - 1] in " -\u00a0\u202f":
            return 0
        place += 1
    ends_word = not (text[place : place + 1].isascii() and text[place : place + 1].isalnum())
    return place if length and seen == length and ends_word else 0


def _cards(text: str) -> Iterator[Span]:
    for match in matches(_CARD, text):
        digits = "".join(filter(str.isdigit, match[0]))
        issuer = _ISSUERS.get(len(digits))
        if issuer and issuer.match(digits) and stdnum.luhn.is_valid(digits):
            yield Span(*match.span(), PiiLabel.CARD)


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for match in matches(_INTERNATIONAL, text):
        # Without a plus sign, an unbroken row of digits needs a word that explains it.
        if match[0].isdigit() and not _is_called_phone(text, match.start()):
            continue
        yield from _longest_valid(text, match, (None,) if match[0][0] == "+" else ("GB",))
    for match in matches(_NORTH_AMERICAN, text):
        yield from _longest_valid(text, match, ("US",))
    for match in matches(_EUROPEAN, text):
        yield from _longest_valid(text, match, ("GB", "DE"))
    for match in matches(_UNBROKEN, text):
        if _BRITISH_MOBILE.fullmatch(match[0]) or _is_called_phone(text, match.start()):
            regions = ("GB", "DE") if match[0][0] == "0" else ("US",)
            yield from _longest_valid(text, match, regions)


def _is_called_phone(text: str, start: int) -> bool:
    return _PHONE_WORD.search(text, max(0, start - _PHONE_WORD_REACH), start) is not None


def _longest_valid(
    text: str, match: re.Match[str], regions: tuple[str | None, ...]
) -> Iterator[tuple[int, int]]:
    """The match, or what is left when the groups that follow a number are taken off."""
    start, end = match.span()
    while sum(map(str.isdigit, text[start:end])) >= _PHONE_DIGITS:
        if any(_is_phone(text[start:end], region) for region in regions):
            yield start, end
            return
        last = _LAST_GROUP.search(text[start:end])
        if last is None:
            return
        end = start + last.start()


def _is_phone(number: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False
