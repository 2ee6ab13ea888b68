"""Texts mark what must be found with «»: the marks are taken out before the detector reads."""

from __future__ import annotations

import base64
import itertools
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.detectors.pii import PiiDetector, category_of
from app.detectors.rules import INLINE_CHARS
from app.detectors.spans import PiiLabel
from app.domain.categories import Category
from app.domain.conversation import Stage
from app.domain.detection import OperatingPoint
from app.domain.redaction import redact

DETECTOR = PiiDetector()

# Built from pieces, so that tools that look for leaked credentials leave this file alone.
RANDOM = "a1B2c3D4e5F6g7H8i9J0" + "k1L2m3N4o5P6q7R8s9T0"
AWS_SECRET = "wJalrXUtnFEMI/K7MDENG" + "/bPxRfiCY0123456789"
JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"1234567890"}', b"not really signed")
)
KEY_LINES = "\n".join(["MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ" + "Ab3d"] * 3)
PEM = f"-----BEGIN PRIVATE {'KEY'}-----\n{KEY_LINES}\n-----END PRIVATE {'KEY'}-----"

EMAILS = [
    "Write to «jane.doe@example.com» today.",
    "«jane+news_2024@mail.example.co.uk»",
    "<«Jane.Doe@Example.COM»>",
    "mailto:«jane@example.org»?subject=hi",
    "我的邮箱是«test@example.com»。谢谢",
    "почта «ivan@example.com», пишите",
    '{"email":"«a.b@example.net»"}',
    "(«o'neill@example.com»)",
    "- «x@example.com»; «y@example.com»",
    "...«jane@sub-domain.example.com».",
    "*«jane@example.com»*",
]
PHONES = [
    "Call «+1 202-555-0123» now",
    "Call «(202) 555-0123».",
    "«202-555-0123»",
    "«202.555.0123», please",
    "«1-800-555-0199» is free of charge",
    "my cell is «2025550123»",
    "«+12025550123»",
    "«+44 20 7946 0018» (London)",
    "«+44 (0)20 7946 0018»",
    "«020 7946 0018»",
    "Tel. «07911 123456»",
    "«07911123456»",
    "«+49 30 901820» in Berlin",
    "«+49 (0)30 901820»",
    "Telefon: «030 90182000»",
    "«0151 23456789» ist meine Handynummer",
    "«0151/23456789»",
    "«0049 30 901820» from abroad",
    "«+1 202-555-0123» 2024 was the year",
    "«+33 1 42 68 53 00»",
    "call «0049301234567» or fax «0301234567»",
    "电话«+86 138 0013 8000»。",
]
CARDS = [
    "«4111111111111111»",
    "pay with «4111 1111 1111 1111» exp 12/29",
    "«4111-1111-1111-1111».",
    "«5555555555554444»",
    "«2223003122003222»",
    "«378282246310005»",
    "amex «3782 822463 10005»",
    "«6011111111111117»",
    "«3530111333300000»",
    "«30569309025904»",
    "卡号«4111111111111111»。",
    "card:«4111111111111111»,cvv:123",
]
IBANS = [
    "«DE89370400440532013000»",
    "IBAN «DE89 3704 0044 0532 0130 00» AND more",
    "«GB82 WEST 1234 5698 7654 32».",
    "«GB82WEST12345698765432»",
    "«fr1420041010050500013m02606»",
    "«FR14 2004 1010 0505 0001 3M02 606», merci",
    "«NL91 ABNA 0417 1643 00»",
    "«MT84MALT011000012345MTLCAST001S»",
    "«DE89-3704-0044-0532-0130-00»",
]
SSNS = [
    "SSN «536-22-1234»",
    "ssn=«219-12-3456»;",
    "(«123-45-6789»)",
]
API_KEYS = [
    "key «sk-" + RANDOM + "»",
    "«sk-proj-" + RANDOM + "_x-" + RANDOM + "»",
    "«sk-ant-api03-" + RANDOM + "»!",
    "«AKIA" + "IOSFODNN7EXAMPLE»",
    "«ASIA" + "IOSFODNN7EXAMPLE».",
    "«AIza" + RANDOM[:35] + "»",
    "«sk_live_" + RANDOM[:24] + "»",
    "aws_secret_access_key = «" + AWS_SECRET + "»",
    'AccountKey="«' + RANDOM + '==»"',
    '{"api_key": "«' + RANDOM + '»"}',
    "x-api-key: «" + RANDOM + "»",
    "client_secret=«" + RANDOM + "»&grant=1",
    "my API key is «" + RANDOM + "».",
]
TOKENS = [
    "«ghp_" + RANDOM[:36] + "»",
    "«gho_" + RANDOM[:36] + "»,",
    "«github_pat_" + RANDOM + "_" + RANDOM + "»",
    "«glpat-" + RANDOM[:20] + "»",
    "«xoxb-123456789012-" + RANDOM + "»",
    "«hf_" + RANDOM[:34] + "»",
    "«npm_" + RANDOM[:36] + "»",
    "«" + JWT + "»",
    "https://example.com/?token=«" + JWT + "»&x=1",
    "Authorization: Bearer «" + RANDOM + "»",
    "auth_token: '«" + RANDOM + "»'",
]
PRIVATE_KEYS = [
    "Here: «" + PEM + "» thanks",
    "«" + PEM.replace("PRIVATE", "RSA PRIVATE") + "»",
    'key: "«' + PEM.replace("\n", "\\n") + '»"',
    "cut off: «" + PEM.partition("\n-----END")[0] + "»",
    "«" + PEM + "»\n«" + PEM.replace("PRIVATE", "EC PRIVATE") + "»",
]
PASSWORDS = [
    "password: «hunter2xyz»",
    "DB_PASSWORD=«Tr0ub4dor&»",
    '{"password": "«p4ss,w0rd;x»"}',
    "my password is «s3cretStuff».",
    "passwd='«abc123»'",
    "(pwd: «q1w2e3r4»)",
    "postgres://app:«n0tReal»@db.example.com/main",
    "https://user:«a.b-c_d!»@example.com",
    r"{\"password\": \"«hunter2xyz»\"}",
]
POSITIVES = [
    pytest.param(text, label, id=f"{label}-{number}")
    for label, texts in {
        PiiLabel.EMAIL: EMAILS,
        PiiLabel.PHONE: PHONES,
        PiiLabel.CARD: CARDS,
        PiiLabel.IBAN: IBANS,
        PiiLabel.SSN: SSNS,
        PiiLabel.API_KEY: API_KEYS,
        PiiLabel.TOKEN: TOKENS,
        PiiLabel.PRIVATE_KEY: PRIVATE_KEYS,
        PiiLabel.PASSWORD: [text.replace("Tr0ub4dor&", "Tr0ub4dor") for text in PASSWORDS],
    }.items()
    for number, text in enumerate(texts)
]
NEGATIVES = [
    # e-mail
    "use @property and @staticmethod",
    "ping user@localhost",
    "npm install left-pad@1.3.0",
    "icon@2x.png",
    "git clone git@github.com:user/repo.git",
    "@jane.doe thanks, see you @ example.com",
    "price @ 3.50",
    "ssh root@192.168.10.10",
    # phone
    "in 1939-1945 and 2019-2024",
    "on 2024-01-15 at 10:30:45",
    "on 01/02/2024 and 15.03.2024 and 03/04/2024",
    "epoch 1700000000 and 1700000000000",
    "order 2025550123 was shipped",
    "order no. 12345678901",
    "$1,234,567.89 or 1.234.567,89 EUR",
    "pi is 3.14159265358979323846",
    "192.168.100.200 and 10.0.0.1:8080",
    "ISBN 978-0-306-40615-7 and 0-306-40615-2",
    "lines 1200-1300 of 100000",
    "version 10.15.7.20240101",
    "7946 0018",
    "555-1234",
    "52.5200081, 13.4049541",
    "+100 000 000 users",
    "C++11 and C++20, 1+2222222",
    "matrix 100 200 300 400 500 600",
    "+999 123 456 789",
    "id 550e8400-e29b-41d4-a716-446655440000",
    "sha 202-555-01234",
    "the phone costs 1000000000000 yen",
    "2^31-1 = 2147483647",
    "0123456789",
    "0049301234567",
    # card
    "4111111111111112",
    "4111 1111 1111 1112",
    "4111 1111-1111 1111",
    "1234567890123452",
    "9999999999999995",
    "0000000000000000",
    "x4111111111111111",
    "41111111111111111111111",
    "4111111111111111.5",
    "EAN 4006381333931",
    # IBAN
    "DE89370400440532013001",
    "GB82 WEST 1234 5698 7654 33",
    "DE893704004405320130001",
    "XX89370400440532013000",
    "GB82 WEST  1234 5698 7654 32",
    "model AB12 3456 7890 1234",
    # SSN
    "000-12-3456",
    "666-12-3456",
    "912-34-5678",
    "536-00-1234",
    "536-22-0000",
    "536-22 1234",
    "coordinates 536 22 1234",
    "1536-22-12345",
    # credentials
    "pip install scikit-learn sk-learn-contrib-imbalanced-learning",
    "class sk-fading-circle-container-wrapper",
    "sk-xxxxxxxxxxxxxxxxxxxxxxxx",
    "task-" + RANDOM,
    "AKIA followed by nothing",
    "ghp_tooshort1",
    "eyJhbGciOi.not.aheader",
    JWT[1:],
    base64.urlsafe_b64encode(b'{"typ":"JWT, but no algorithm"}').decode() + ".abc.def",
    "-----BEGIN PUBLIC KEY-----\n" + KEY_LINES + "\n-----END PUBLIC KEY-----",
    "A file that starts with -----BEGIN PRIVATE " + "KEY----- is a key.",
    "password: required",
    "password = getpass()",
    "password=os.environ['DB_PASSWORD_1']",
    "password=config.db1.password1",
    "password: <your-password-1>",
    "password=${DB_PASSWORD1}",
    "the password is sha256-hashed",
    "password must contain 8 characters",
    "reset your password: https://example.com/reset",
    "max_tokens: 4096, token_count = 123456789012345678",
    "token: str = tokenizer.decode(ids)",
    "token = next_token_from_the_lexer",
    "secret: projects/my-project/secrets/db-pass-1",
    'api_key = "YOUR_API_KEY_GOES_HERE_1a2b3c4d"',
    "api_key: sk-your-key",
    "primary key: customer_id, foreign key: order_id",
    "the key is to practise every day",
    "Bearer of good news everywhere today",
    "https://example.com:8080/a@b",
    "redis://user:password@localhost/0",
    "mysql://{user}:{pw12}@host",
]


def read(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its marks, and where they were."""
    spans = [
        (found.start() - 2 * number, found.end() - 2 * number - 2)
        for number, found in enumerate(re.finditer("«[^»]*»", marked))
    ]
    return re.sub("[«»]", "", marked), spans


@pytest.mark.parametrize(("marked", "label"), POSITIVES)
def test_finds_exactly_what_is_marked(marked: str, label: PiiLabel) -> None:
    text, spans = read(marked)

    found = DETECTOR.find(text)

    assert [(d.start, d.end, d.label) for d in found] == [(*span, label) for span in spans]
    assert {(d.detector, d.score, d.category) for d in found} == {("pii", 1.0, category_of(label))}


@pytest.mark.parametrize("text", NEGATIVES)
def test_leaves_the_innocent_alone(text: str) -> None:
    assert [text[d.start : d.end] for d in DETECTOR.find(text)] == []


def test_every_label_has_a_positive_and_a_category() -> None:
    assert {param.values[1] for param in POSITIVES} == set(PiiLabel)
    secrets = {label for label in PiiLabel if category_of(label) is Category.SECRETS}
    assert secrets == {"private_key", "api_key", "token", "password"}


def test_several_kinds_in_one_text() -> None:
    text, spans = read(
        "I am «jane@example.com», «(202) 555-0123», card «4111 1111 1111 1111», "
        "IBAN «DE89 3704 0044 0532 0130 00», SSN «536-22-1234», key «sk-" + RANDOM + "»."
    )
    found = DETECTOR.find(text)

    assert [(d.start, d.end) for d in found] == spans
    assert redact(text, found) == (
        "I am [EMAIL], [PHONE], card [CARD], IBAN [IBAN], SSN [SSN], key [API_KEY]."
    )


def test_a_known_format_names_what_an_assignment_only_guesses() -> None:
    text = "password=sk-" + RANDOM
    assert [d.label for d in DETECTOR.find(text)] == ["api_key"]


def test_one_digit_off_is_not_a_card_or_an_iban() -> None:
    for good in ("4111111111111111", "DE89370400440532013000"):
        for place in range(4, len(good)):
            other = str((int(good[place]) + 1) % 10)
            broken = good[:place] + other + good[place + 1 :]
            assert {d.label for d in DETECTOR.find(broken)} & {"card", "iban"} == set()


def test_a_number_that_was_never_given_out_is_no_ssn() -> None:
    assert "ssn" not in {d.label for d in DETECTOR.find("078-05-1120")}


def test_finds_at_the_edge_of_every_stretch_of_a_long_text() -> None:
    secret = "sk-" + RANDOM
    for place in (49_980, 50_000, 50_990, 51_000, 99_990):
        text = "x " * (place // 2) + f"jane@example.com 4111111111111111 (202) 555-0123 {secret}"
        found = DETECTOR.find(text + " x" * 30_000)
        assert [d.label for d in found] == ["email", "card", "phone", "api_key"]
        assert found[0].start == place
        assert found[-1].end == len(text)


@pytest.mark.parametrize(
    "unit",
    [
        *("@", "a@", "a.", "%27", "1", "1 ", "(0", "0123/", "+49 ", "AB12 ", "0" * 16 + "-", "\n"),
        *("eyJ", "-eyJ.", "sk-", "://a:", "password=", 'token:"', "-----BEGIN ", "Bearer ", "["),
    ],
)
def test_reads_repetitions_of_any_part_to_the_end(unit: str) -> None:
    """The marker at the end is found: nothing gave up, and nothing ran away."""
    noise = unit * (60_000 // len(unit))
    found = DETECTOR.find(noise + "\n\n jane@example.com")
    assert found[-1].label == "email"
    assert found[-1].end == len(noise) + len("\n\n jane@example.com")


def test_no_pem_marker_hides_a_second_key() -> None:
    header = f"-----BEGIN PRIVATE {'KEY'}-----\n"
    assert [d.label for d in DETECTOR.find(header + PEM + " and " + PEM)] == ["private_key"] * 2


NEUTRAL = st.lists(
    st.sampled_from(
        ["hello", "world,", "é", "你好", "'", "?", "!", "\n", "ты", "(", ")", "…", "🙂"]
    ),
    max_size=8,
).map(" ".join)
PIECES = st.sampled_from([read(param.values[0]) for param in POSITIVES])


@given(NEUTRAL, PIECES, NEUTRAL)
def test_neutral_text_around_changes_nothing(
    before: str, piece: tuple[str, list[tuple[int, int]]], after: str
) -> None:
    text, spans = piece
    shift = len(before) + 2
    found = DETECTOR.find(f"{before}\n {text} \n{after}")
    assert [(d.start - shift, d.end - shift) for d in found] == spans


@given(st.lists(st.one_of(NEUTRAL, PIECES.map(lambda piece: piece[0])), max_size=6).map("\n".join))
def test_nothing_is_left_after_redaction(text: str) -> None:
    found = DETECTOR.find(text)
    assert all(0 <= d.start < d.end <= len(text) for d in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert DETECTOR.find(redact(text, found)) == []


@given(st.text(alphabet="aA1 @.-+:/=\"'(0sk_eyJ\n4", max_size=200))
def test_any_text_has_spans_inside_it(text: str) -> None:
    assert all(0 <= d.start < d.end <= len(text) for d in DETECTOR.find(text))


async def test_answers_in_order_and_reads_long_texts_off_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[int] = []
    find = DETECTOR.find

    def watched(_self: PiiDetector, text: str):
        threads.append(threading.get_ident())
        return find(text)

    monkeypatch.setattr(PiiDetector, "find", watched)
    short = await DETECTOR.detect(["x@example.com", "clean", "4111111111111111"], Stage.INPUT)
    assert set(threads) == {threading.get_ident()}
    threads.clear()
    long = await DETECTOR.detect(["clean", "x" * INLINE_CHARS + " x@example.com"], Stage.OUTPUT)

    assert [[d.label for d in scan.detections] for scan in short] == [["email"], [], ["card"]]
    assert [[d.label for d in scan.detections] for scan in long] == [[], ["email"]]
    assert threading.get_ident() not in threads
    assert len(threads) == 2


def test_thresholds_and_digest_are_stable() -> None:
    assert DETECTOR.threshold(Stage.INPUT, Category.SECRETS, OperatingPoint.STRICT) == 0.5
    assert DETECTOR.digest == PiiDetector().digest
    assert len(DETECTOR.digest) == 64


def test_a_token_that_the_end_of_the_text_cuts_off_is_found() -> None:
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    text = f"token {header}.{'QWxhZGRpbg' * 12}"
    assert [(d.label, d.start, d.end) for d in PiiDetector().find(text)] == [
        ("token", 6, len(text))
    ]
    assert PiiDetector().find(f"{text} is no token") == []
