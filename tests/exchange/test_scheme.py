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


def written(scheme: str, told: dict[str, str]) -> str:
    return " ".join(
        filter(None, [scheme, ", ".join(f"{name}={quoted(value)}" for name, value in told.items())])
    )


@given(CHALLENGES, st.booleans())
def test_whatever_is_written_is_read(challenges: list[tuple[str, dict[str, str]]], together: bool) -> None:
    lines = [written(*challenge) for challenge in challenges]
    headers = httpx.Headers(
        [("WWW-Authenticate", line) for line in ([", ".join(lines)] if together else lines)]
    )
    assert offered_schemes(headers) == [scheme for scheme, _ in challenges]
    for scheme, told in challenges:
        assert challenge_parameters(headers, scheme.lower()) == told


@given(st.binary(min_size=1))
def test_tokens(sent: bytes) -> None:
    headers = httpx.Headers(
        [("WWW-Authenticate", "Negotiate"), ("WWW-Authenticate", f"NTLM {b64encode(sent).decode()}")]
    )
    assert (
        challenge_token(headers, "NTLM"),
        challenge_token(headers, "Negotiate"),
        challenge_token(headers, "Basic"),
    ) == (
        sent,
        None,
        None,
    )
    assert offered_schemes(headers) == ["Negotiate", "NTLM"]


def test_what_real_servers_write() -> None:
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
def test_a_header_that_is_made_to_take_long_does_not(header: str) -> None:
    headers = httpx.Headers([("www-authenticate", header)] * 3)
    started_at = time.process_time()
    assert len(offered_schemes(headers)) <= MAX_SCHEMES
    challenge_parameters(headers, "Bearer")
    challenge_token(headers, "Negotiate")
    assert time.process_time() - started_at < 0.5


def test_a_quote_without_its_end_hides_the_rest() -> None:
    headers = httpx.Headers([("www-authenticate", 'Basic realm="a, NTLM, Negotiate')])
    assert offered_schemes(headers) == ["Basic"]
