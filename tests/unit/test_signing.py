"""Standard Webhooks. The vectors were made with the scheme's own Python library, ``standardwebhooks`` 1.1.0."""

from __future__ import annotations

import base64
import secrets as random_secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emailsvc.errors import ServiceError
from emailsvc.intake.signing import TOLERANCE_SECONDS, decode_secret, make_secret, sign, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYob7oD8="
NOW = 1_700_000_000
BODY = b'{"email_id": "1"}'

VECTORS = [
    (
        SECRET,
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        '{"test": 2432232314}',
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    ),
    (OTHER, "msg_1", NOW, '{"subject":"Grüße"}', "v1,6HB3JLHFZXcDQIWII6HetegfY2OzVY+0j1OyA5H9TdE="),
    (SECRET, "ä", 1, "", "v1,Psax/J4GJkHNSEOFe4G0UPHMcVPNo0pO1NBpNTVeSSE="),
]


def headers(**changes: str | None) -> dict[str, str]:
    given = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(NOW),
        "webhook-signature": sign(SECRET, "msg_1", NOW, BODY),
    } | {f"webhook-{name}": value for name, value in changes.items()}
    return {name: value for name, value in given.items() if value is not None}


def refusal(given: dict[str, str], body: bytes = BODY, secrets: tuple[str, ...] = (SECRET,), now: float = NOW) -> str:
    with pytest.raises(ServiceError) as raised:
        verify(secrets, given.get, lambda: body, now)
    assert raised.value.status == 401
    return raised.value.code


@pytest.mark.parametrize(("secret", "message_id", "timestamp", "body", "signature"), VECTORS)
def test_it_signs_as_the_public_library_does(
    secret: str, message_id: str, timestamp: int, body: str, signature: str
) -> None:
    assert sign(secret, message_id, timestamp, body.encode()) == signature
    on_the_wire = {
        "webhook-id": message_id.encode().decode("latin-1"),
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signature,
    }
    verify([secret], on_the_wire.get, body.encode, timestamp)


def test_a_new_secret_signs_and_no_two_are_the_same() -> None:
    secret = make_secret()
    assert secret.startswith("whsec_")
    assert len(decode_secret(secret)) == 32
    assert make_secret() != secret


def test_the_prefix_and_the_padding_of_a_secret_may_be_missing() -> None:
    assert decode_secret(OTHER) == decode_secret(OTHER.removeprefix("whsec_").rstrip("="))


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_%%%", "whsec_c2hvcnQ=", "whsec_ä", "not base64 at all"])
def test_a_bad_secret_is_a_value_error(secret: str) -> None:
    with pytest.raises(ValueError, match="a secret"):
        decode_secret(secret)


def test_any_secret_and_any_signature_may_fit_so_that_both_ends_can_rotate() -> None:
    old, new = sign(OTHER, "msg_1", NOW, BODY), sign(SECRET, "msg_1", NOW, BODY)
    for signatures in (new, f"{old} {new}", f"{new} {old}", f"v1a,xyz v2,{new[3:]} garbage {new}"):
        verify([OTHER, SECRET], headers(signature=signatures).get, lambda: BODY, NOW)
    assert refusal(headers(signature=old)) == "bad_signature"


def svix(given: dict[str, str]) -> dict[str, str]:
    return {name.replace("webhook-", "svix-"): value for name, value in given.items()}


@pytest.mark.parametrize(("secret", "message_id", "timestamp", "body", "signature"), VECTORS)
def test_the_same_scheme_goes_under_svix_s_names(
    secret: str, message_id: str, timestamp: int, body: str, signature: str
) -> None:
    on_the_wire = {
        "svix-id": message_id.encode().decode("latin-1"),
        "svix-timestamp": str(timestamp),
        "svix-signature": signature,
    }
    verify([secret], on_the_wire.get, body.encode, timestamp)


def test_under_svix_s_names_the_same_is_refused() -> None:
    wrong = sign(OTHER, "msg_1", NOW, BODY)
    assert refusal(svix(headers(signature=wrong))) == "bad_signature"
    assert refusal(svix(headers(timestamp="1"))) == "stale_timestamp"
    assert refusal(svix(headers(timestamp="x"))) == "bad_timestamp"
    assert refusal(svix(headers(id=None))) == "unsigned"


def test_of_both_families_webhook_wins_and_they_are_never_mixed() -> None:
    wrong = headers(signature=sign(OTHER, "msg_1", NOW, BODY))
    verify([SECRET], (headers() | svix(wrong)).get, lambda: BODY, NOW)
    assert refusal(wrong | svix(headers())) == "bad_signature"
    assert refusal(headers(id=None) | {"svix-id": "msg_1"}) == "unsigned"


@pytest.mark.parametrize("seconds", [-TOLERANCE_SECONDS, 0, TOLERANCE_SECONDS])
def test_five_minutes_either_way_are_tolerated(seconds: int) -> None:
    verify([SECRET], headers().get, lambda: BODY, NOW + seconds)


@pytest.mark.parametrize("seconds", [-TOLERANCE_SECONDS - 1, TOLERANCE_SECONDS + 1])
def test_more_is_stale(seconds: int) -> None:
    assert refusal(headers(), now=NOW + seconds) == "stale_timestamp"


@pytest.mark.parametrize("name", ["id", "timestamp", "signature"])
def test_each_header_is_needed(name: str) -> None:
    assert refusal(headers(**{name: None})) == "unsigned"
    assert refusal(headers(**{name: ""})) == "unsigned"


@pytest.mark.parametrize(
    "timestamp", ["1e9", "-1", "+1", "1.0", " 1", "9" * 5000, f"{NOW},{NOW}", "١٢٣", "٣" * 10, "\xff", "NaN", "1_0"]
)
def test_a_timestamp_that_is_no_number_is_refused(timestamp: str) -> None:
    assert refusal(headers(timestamp=timestamp)) == "bad_timestamp"


@pytest.mark.parametrize(
    "signature",
    [
        "v1",
        "v1,",
        ",",
        "v1," + "%" * 44,
        "v1,ä",
        "v1,\xff\xfe",
        "v1,\u20ac",
        sign(SECRET, "msg_1", NOW, BODY)[3:],
        sign(SECRET, "msg_1", NOW, BODY) + "," + sign(SECRET, "msg_1", NOW, BODY),
        "v1 " + sign(SECRET, "msg_1", NOW, BODY)[3:],
        "V1" + sign(SECRET, "msg_1", NOW, BODY)[2:],
        "v1," + base64.b64encode(b"x" * 31).decode(),
    ],
)
def test_a_malformed_signature_is_refused_and_nothing_worse(signature: str) -> None:
    assert refusal(headers(signature=signature)) == "bad_signature"


@pytest.mark.parametrize(
    "changes",
    [
        {"id": None},
        {"timestamp": None},
        {"signature": None},
        {"timestamp": "x"},
        {"timestamp": "1"},
        {"id": "\u20ac"},
        {"signature": "v1,"},
        {"signature": "v1,eA== v2,eA=="},
    ],
    ids=str,
)
def test_the_body_is_not_read_while_the_headers_are_not_in_order(changes: dict[str, str | None]) -> None:
    with pytest.raises(ServiceError):
        verify([SECRET], headers(**changes).get, lambda: pytest.fail("the body was read"), NOW)


def test_every_single_bit_of_the_signature_counts() -> None:
    digest = bytearray(base64.b64decode(sign(SECRET, "msg_1", NOW, BODY)[3:]))
    for bit in range(len(digest) * 8):
        digest[bit // 8] ^= 1 << bit % 8
        changed = "v1," + base64.b64encode(digest).decode()
        assert refusal(headers(signature=changed)) == "bad_signature"
        digest[bit // 8] ^= 1 << bit % 8


def test_id_time_and_body_are_all_signed() -> None:
    assert refusal(headers(id="msg_2")) == "bad_signature"
    assert refusal(headers(timestamp=str(NOW + 1))) == "bad_signature"
    assert refusal(headers(), body=BODY + b" ") == "bad_signature"
    assert refusal(headers(), secrets=(OTHER,)) == "bad_signature"
    assert refusal(headers(id="\u20ac")) == "bad_signature"


def test_a_header_of_very_many_signatures_buys_no_work() -> None:
    signature = sign(SECRET, "msg_1", NOW, BODY)
    wrong = "v1," + base64.b64encode(random_secrets.token_bytes(32)).decode()
    assert refusal(headers(signature=" ".join([wrong] * 10_000 + [signature]))) == "bad_signature"


@given(st.text(), st.text(), st.text())
def test_whatever_the_headers_hold_the_answer_is_401(message_id: str, timestamp: str, signature: str) -> None:
    refusal(headers(id=message_id, timestamp=timestamp, signature=signature))
    refusal(headers(signature=signature))
