"""Builds the boto3 client: endpoint, region, TLS, timeouts, checksums, credentials.

Invariants
1. botocore makes one attempt and follows no redirect of its own (retries: s3_client.py).
2. Credentials come from AWS's own chain, and only a digest of them is kept, to see a change.
3. A small body goes with its head, without waiting for "100 Continue": that would be a second
   round trip for each of thousands of small files.

Called by s3_client.py.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from typing import Any, Final, cast

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, DataNotFoundError
from botocore.utils import determine_content_length
from urllib3.exceptions import InsecureRequestWarning

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.store import s3_http
from s3ws_fs.store.s3_errors import map_error, without_secrets
from s3ws_fs.store.s3_plain import REGION_DEFAULT

_STATIC: Final = ("env", "shared-credentials-file", "config-file", "custom-process")
"""Ways to credentials that botocore asks once."""


def make_client(config: StoreConfig) -> tuple[Any, bytes]:
    """A boto3 S3 client, and a digest of its credentials. Raises PermanentError (bad profile…)."""
    custom = config.endpoint_url
    if not config.verify_tls:
        # The setting asks for it; a warning for each request would drown everything else.
        warnings.simplefilter("ignore", InsecureRequestWarning)
    try:
        session = _session()
        if custom is None:
            custom = _configured_endpoint(session)
        region = config.region or session.region_name or (REGION_DEFAULT if custom else None)
        verify: bool | str = config.ca_bundle or True if config.verify_tls else False
        client = cast(Any, session).client(
            "s3",
            endpoint_url=config.endpoint_url,
            region_name=region,
            # None lets AWS_CA_BUNDLE count, True would override it.
            verify=None if verify is True else verify,
            config=_client_config(config, custom=custom is not None),
        )
        client.meta.events.register_last("before-call.s3", _expect_nothing)
        return client, _digest(session)
    except (BotoCoreError, ValueError) as exc:
        raise map_error("open", config.location, exc) from without_secrets(exc)


def _session() -> boto3.session.Session:
    """A session that looks for the services it needs only."""
    core = botocore.session.get_session()
    loader: Any = core.get_component("data_loader")
    of_all = loader.list_available_services
    loader.list_available_services = lambda type_name: _Services(loader, of_all, type_name)
    return boto3.session.Session(botocore_session=core)


class _Services:
    """The names of all services that botocore knows, looked up one by one.

    It asks whether "s3" is among them, for which it lists the directories of four hundred: a third
    of what a client costs to make.
    """

    def __init__(self, loader: Any, of_all: Any, type_name: str) -> None:
        self._loader, self._of_all, self._type_name = loader, of_all, type_name

    def __contains__(self, name: str) -> bool:
        try:
            return bool(self._loader.list_api_versions(name, self._type_name))
        except DataNotFoundError:
            return False

    def __iter__(self) -> Iterator[str]:
        names: list[str] = self._of_all(self._type_name)
        return iter(names)


def _expect_nothing(params: dict[str, Any], **_: Any) -> None:
    """Invariant 3."""
    size = determine_content_length(params.get("body"))
    if size is not None and size <= s3_http.EXPECT_BYTES_MIN:
        params["headers"].pop("Expect", None)


_SOURCES: Final = {
    "env": "variables (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "the credentials file",
    "config-file": "the configuration file",
    "custom-process": "a credential_process",
    "assume-role": "a role that is assumed",
    "assume-role-with-web-identity": "a web identity",
    "sso": "single sign-on",
    "container-role": "the container's role",
    "iam-role": "the instance's role",
}


def source_of_credentials(config: StoreConfig) -> str | None:
    """Where the credentials come from, for a person; None when there are none.

    Raises PermanentError, TransientError.
    """
    try:
        credentials = boto3.session.Session().get_credentials()
    except (BotoCoreError, ValueError) as exc:
        raise map_error("open", config.location, exc) from without_secrets(exc)
    if credentials is None:
        return None
    method = str(credentials.method)
    return _SOURCES.get(method, method)


def _digest(session: Any) -> bytes:
    credentials = session.get_credentials()
    # Those of a role are renewed by botocore itself; asking for them now would be a request.
    if credentials is None or credentials.method not in _STATIC:
        return b""
    known = "\0".join(map(str, credentials.get_frozen_credentials()))
    return hashlib.sha256(known.encode("utf-8", "surrogateescape")).digest()


def _client_config(config: StoreConfig, *, custom: bool) -> Config:
    style = config.addressing_style
    options: dict[str, Any] = {}
    if custom:
        # Many servers reject or mis-handle the newer default checksums.
        options = {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    return Config(
        signature_version="s3v4",
        connect_timeout=s3_http.CONNECT_TIMEOUT_S,
        read_timeout=s3_http.READ_TIMEOUT_S,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=config.max_parallel,
        tcp_keepalive=True,
        s3={"addressing_style": "path" if custom and style == "auto" else style},
        **options,
    )


def _configured_endpoint(session: Any) -> str | None:
    """An endpoint that the environment or the profile names (AWS_ENDPOINT_URL_S3 and kin)."""
    probe = session.client("s3", region_name=REGION_DEFAULT)
    try:
        url: str = probe.meta.endpoint_url
    finally:
        probe.close()
    return None if ".amazonaws.com" in url else url
