"""Challenges of a 401."""

import time
from base64 import b64encode

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from listener.exchange.auth.scheme import MAX_SCHEMES, challenge_parameters, challenge_token, offered_schemes

SCHEMES = ["NTLM", "Negotiate", "Basic", "Bearer", "Digest"]
QUOTABLE = st.text('abc ,="\\NTLMBasic', max_size=12)
CHALLENGES = st.lists(
    st.tuples(
        st.sampled_from(SCHEMES),
        st.dictionaries(st.sampled_from(["realm", "error", "claims", "client_id"]), QUOTABLE, max_size=3),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda challenge: challenge[0],
)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def challenge_header(scheme: str, parameters: dict[str, str]) -> str:
    return " ".join(
        filter(None, [scheme, ", ".join(f"{name}={quoted(value)}" for name, value in parameters.items())])
    )


@given(CHALLENGES, st.booleans())
def test_any_challenge_is_parsed(challenges: list[tuple[str, dict[str, str]]], in_one_header: bool) -> None:
    lines = [challenge_header(*challenge) for challenge in challenges]
    headers = httpx.Headers(
        [("WWW-Authenticate", line) for line in ([", ".join(lines)] if in_one_header else lines)]
    )
    assert offered_schemes(headers) == [scheme for scheme, _ in challenges]
    for scheme, parameters in challenges:
        assert challenge_parameters(headers, scheme.lower()) == parameters


@given(st.binary(min_size=1))
def test_tokens(sent: bytes) -> None:
    headers = httpx.Headers(
        [("WWW-Authenticate", "Negotiate"), ("WWW-Authenticate", f"NTLM {b64encode(sent).decode()}")]
    )
    assert challenge_token(headers, "NTLM") == sent
    assert challenge_token(headers, "Negotiate") is None
    assert challenge_token(headers, "Basic") is None
    assert offered_schemes(headers) == ["Negotiate", "NTLM"]


def test_challenges_of_real_servers() -> None:
    bearer = (
        'Bearer client_id="00000002-0000-0ff1-ce00-000000000000", trusted_issuers="00000001@*", error='
        '"insufficient_claims", claims="eyJ4Ijp7fX0="'
    )
    headers = httpx.Headers([("WWW-Authenticate", bearer), ("WWW-Authenticate", 'Basic Realm=""')])
    assert offered_schemes(headers) == ["Bearer", "Basic"]
    assert challenge_parameters(headers, "bearer")["claims"] == "eyJ4Ijp7fX0="
    assert challenge_parameters(headers, "basic") == {"realm": ""}
    assert challenge_parameters(headers, "ntlm") == {}
    assert challenge_token(httpx.Headers([("WWW-Authenticate", "NTLM !!")]), "NTLM") is None


@pytest.mark.parametrize(
    "header",
    [
        "Negotiate" + " " * 95_000 + "=",
        "Bearer " + "a" * 95_000,
        "Bearer a=" + " " * 95_000,
        'Bearer a="' + '\\"' * 47_000,
        "Bearer " + 'a="b' * 20_000,
        "," * 95_000,
        ", a" * 30_000,
        "a=b, " * 20_000,
    ],
)
def test_a_hostile_header_is_parsed_in_linear_time(header: str) -> None:
    headers = httpx.Headers([("www-authenticate", header)] * 3)
    started_at = time.process_time()
    assert len(offered_schemes(headers)) <= MAX_SCHEMES
    challenge_parameters(headers, "Bearer")
    challenge_token(headers, "Negotiate")
    assert time.process_time() - started_at < 0.5


def test_an_unterminated_quote_masks_the_rest() -> None:
    headers = httpx.Headers([("www-authenticate", 'Basic realm="a, NTLM, Negotiate')])
    assert offered_schemes(headers) == ["Basic"]
