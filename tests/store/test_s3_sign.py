"""Our signatures against those of botocore, which are known to be right."""

from __future__ import annotations

import datetime
from unittest import mock

import pytest
from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.store.s3_sign import EMPTY_SHA256, Keys, Signer, quoted_path, quoted_query

NOW = datetime.datetime(2026, 11, 30, 8, 5, 9, tzinfo=datetime.UTC)
STAMP = "20261130T080509Z"

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=20)
NAMES = st.sampled_from(["if-match", "Content-Type", "x-amz-meta-a", "x-amz-meta-b", "range"])
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)


def _of_botocore(
    keys: Keys, method: str, path: str, query: str, headers: dict[str, str], body: bytes
) -> dict[str, str]:
    url = f"http://{headers['host']}{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method=method, url=url, headers=dict(headers), data=body)
    credentials = Credentials(keys.access, keys.secret, keys.token or None)
    with mock.patch.object(auth, "get_current_datetime", return_value=NOW):
        auth.S3SigV4Auth(credentials, "s3", "eu-central-1").add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


@given(
    method=st.sampled_from(["GET", "PUT", "HEAD", "POST", "DELETE"]),
    key=TEXTS,
    query=st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=4),
    headers=st.dictionaries(NAMES, VALUES, max_size=4),
    token=st.sampled_from(["", "a/token+of=a session"]),
    port=st.sampled_from(["", ":9000"]),
)
def test_a_signature_is_botocores(
    method: str, key: str, query: dict[str, str], headers: dict[str, str], token: str, port: str
) -> None:
    import hashlib

    keys = Keys("access", "secret/+=", token)
    body = key.encode() if method in ("PUT", "POST") else b""
    path, text = quoted_path(f"/bucket/{key}"), quoted_query(query)
    headers = {"host": f"store.example{port}", **headers}
    ours = Signer(keys, "eu-central-1").signed(
        method, path, text, headers, hashlib.sha256(body).hexdigest(), STAMP
    )
    theirs = _of_botocore(keys, method, path, text, headers, body)
    assert {name.lower(): value for name, value in ours.items()} == theirs


def test_a_new_day_has_a_key_of_its_own() -> None:
    signer = Signer(Keys("a", "s"), "r")

    def of(stamp: str, by: Signer) -> str:
        return by.signed("GET", "/", "", {"host": "h"}, EMPTY_SHA256, stamp)["Authorization"]

    stamps = ["20261130T235959Z", "20261201T000000Z", "20261130T235959Z"]
    assert [of(s, signer) for s in stamps] == [of(s, Signer(Keys("a", "s"), "r")) for s in stamps]


@pytest.mark.parametrize("token", ["", "token"])
def test_secrets_are_not_shown(token: str) -> None:
    assert repr(Keys("access", "secret", token)) == "Keys(access='access')"
