"""An S3 bucket (AWS, MinIO, SeaweedFS and kin) as an ObjectStore, by boto3.

Invariants
1. Every condition is sent to the server; it is emulated (HEAD before, and not sent) only for what
   `assume` was told that the server ignores.
2. A body above `multipart_bytes` (`conditional_bytes` with a condition) goes up in parts; its
   condition stands on the completion, so the object appears at once or not at all. An upload that
   failed is aborted.
3. After an answer was lost, a failed condition is compared with the object that stands there
   (contract invariant 4).

Server facts (tests/store/test_contract.py checks them): SeaweedFS 4.48 honours If-None-Match and
If-Match on PutObject, CompleteMultipartUpload and CopyObject, CopySourceIfMatch, If-Match on
DeleteObject, and the ETag of each key in DeleteObjects. The awscrt transfer client is not used: it
ignores `endpoint_url`.

Called by the factory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Final

from s3ws_fs.core.config import StoreConfig
from s3ws_fs.core.errors import (
    ConflictError,
    NotFoundError,
    PermanentError,
    TransientError,
)
from s3ws_fs.store.base import (
    DEFAULT_CONTENT_TYPE,
    DELETE_BATCH,
    Conditional,
    DeleteFailure,
    Fetched,
    Keeps,
    ListEntry,
    ObjectInfo,
    ObjectStore,
    check_attributes,
    check_conditions,
    check_key,
    check_range,
    check_self_copy,
    usable_keys,
)
from s3ws_fs.store.body import Body, Composed, Source, Standing
from s3ws_fs.store.s3_answers import etag_of, fetched, if_match_of, require_etag, require_range
from s3ws_fs.store.s3_client import RetryPolicy, Wire
from s3ws_fs.store.s3_lists import (
    Pairs,
    delete_batch,
    kept_versions,
    list_folders,
    list_items,
    list_page,
)
from s3ws_fs.store.s3_lost import is_md5_of, lost_copy, lost_put
from s3ws_fs.store.s3_multipart import (
    COPY_BYTES_MAX,
    MultipartLimits,
    NotCopiedError,
    abort_uploads,
    copy_parts,
    upload_parts,
)

_OF_HEAD: Final = ("ETag", "ContentLength", "LastModified")
_Failures = list[DeleteFailure]


class S3Store(ObjectStore):
    """One bucket."""

    def __init__(
        self,
        config: StoreConfig,
        *,
        retry: RetryPolicy | None = None,
        limits: MultipartLimits | None = None,
    ) -> None:
        """Makes no request. Raises PermanentError for a bad profile or endpoint."""
        super().__init__()
        self._bucket = config.bucket
        self._limits = limits or MultipartLimits()
        self._conditional = Conditional()
        self._md5_etags = True
        self._composes = True
        self._wire = Wire(config, self.counters, self.waits, retry or RetryPolicy())

    def get(
        self, key: str, offset: int = 0, length: int | None = None, *, if_match: str | None = None
    ) -> Fetched:
        """See ObjectStore.get."""
        check_key("get", key)
        check_range(key, offset, length)
        check_conditions("get", key, if_none_match=False, if_match=if_match)
        if length == 0:
            return self._empty_range(key, if_match)
        arguments = {"Bucket": self._bucket, "Key": key, **if_match_of(if_match)}
        if offset or length is not None:
            last = "" if length is None else str(offset + length - 1)
            arguments["Range"] = f"bytes={offset}-{last}"

        def request() -> dict[str, Any]:
            answer: dict[str, Any] = self._wire.client.get_object(**arguments)
            # Read here, inside the slot and the retries.
            with contextlib.closing(answer["Body"]) as body:
                answer["Body"] = body.read()
            require_range(key, answer, offset, length)
            return answer

        try:
            answer = self._wire.send("get", key, request, needs=("ETag",), size_bytes=length or 0)
        except PermanentError as exc:
            if exc.detail.startswith(("InvalidRange", "416")):
                return self._empty_range(key, if_match)
            raise
        self.counters.carried(received_bytes=len(answer["Body"]))
        return fetched(answer, offset, length)

    def head(self, key: str, *, marker: bool = False) -> ObjectInfo:
        """See ObjectStore.head. `marker`: of the directory marker of that name."""
        check_key("head", key)
        whole = key + "/" if marker else key
        request = partial(self._wire.client.head_object, Bucket=self._bucket, Key=whole)
        answer = self._wire.send("head", key, request, needs=_OF_HEAD)
        return ObjectInfo(
            key,
            int(answer["ContentLength"]),
            etag_of(answer),
            int(answer["LastModified"].timestamp() * 1e9),
            answer.get("ContentType", DEFAULT_CONTENT_TYPE),
            {name.lower(): value for name, value in answer.get("Metadata", {}).items()},
        )

    def put(
        self,
        key: str,
        body: Body,
        *,
        content_type: str = DEFAULT_CONTENT_TYPE,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> str:
        """See ObjectStore.put."""
        check_key("put", key)
        check_attributes("put", key, content_type, metadata)
        conditions = self._put_conditions("put", key, if_none_match, if_match)
        source = Source("put", key, body)
        limit = self._limits.conditional_bytes if conditions else self._limits.multipart_bytes
        target = {"Bucket": self._bucket, "Key": key}
        attributes = {"ContentType": content_type, "Metadata": dict(metadata or {})}

        def was_ours() -> dict[str, Any] | None:
            return lost_put(self, key, source, attributes)

        try:
            if source.size_bytes > limit:
                self._check_early(key, if_none_match, if_match)
                standing = body.usable(key, if_match) if isinstance(body, Composed) else ()
                answer = self._put_parts((target, attributes, conditions), source, standing)
            else:

                def request() -> dict[str, Any]:
                    # A reader of its own for each attempt: the one before left it at its end, and
                    # botocore would send an empty body from there.
                    body = source.stream()
                    sent: dict[str, Any] = self._wire.client.put_object(
                        **target, **attributes, **conditions, Body=body
                    )
                    return sent

                answer = self._wire.send(
                    "put",
                    key,
                    request,
                    was_ours=was_ours,
                    needs=("ETag",),
                    size_bytes=source.size_bytes,
                )
        except NotFoundError as exc:
            # AWS says 404 to If-Match on a key that is gone.
            raise ConflictError("put", key, "the object to replace is gone") from exc
        etag = etag_of(answer)
        return etag if source.size_bytes > limit else self._sure_etag(key, source, etag, was_ours)

    def copy(
        self,
        src: str,
        dst: str,
        *,
        src_if_match: str | None = None,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        if_none_match: bool = False,
        if_match: str | None = None,
    ) -> str:
        """See ObjectStore.copy. Above `copy_bytes_max` part by part (then with a HEAD before)."""
        check_key("copy", src)
        check_key("copy", dst)
        check_self_copy(src, dst, content_type, metadata)
        check_attributes("copy", dst, content_type, metadata)
        check_conditions("copy", src, if_none_match=False, if_match=src_if_match)
        keep = content_type is None and metadata is None
        source: dict[str, Any] = {"CopySource": {"Bucket": self._bucket, "Key": src}}
        info = None
        if src_if_match is not None:
            if self._conditional.copy_src_if_match:
                source["CopySourceIfMatch"] = f'"{src_if_match}"'
            else:
                info = self.head(src)
                require_etag("copy", src, info.etag, src_if_match)
        conditions = self._copy_conditions(dst, if_none_match, if_match)
        attributes: dict[str, Any] = {
            "ContentType": content_type or DEFAULT_CONTENT_TYPE,
            "Metadata": dict(metadata or {}),
        }
        target = {"Bucket": self._bucket, "Key": dst}
        answer = self._copy_whole(
            (src, dst, src_if_match), {**target, **source, **conditions}, attributes, keep
        )
        if answer is None:
            info = info or self.head(src)
            if keep:
                attributes = {"ContentType": info.content_type, "Metadata": dict(info.metadata)}
            source["CopySourceIfMatch"] = f'"{src_if_match or info.etag}"'
            answer = copy_parts(
                self._wire, self._limits, target, attributes, conditions, source, info.size_bytes
            )
            return etag_of(answer)
        return etag_of(answer["CopyObjectResult"])

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """See ObjectStore.delete."""
        check_key("delete", key)
        check_conditions("delete", key, if_none_match=False, if_match=if_match)
        arguments: dict[str, Any] = {"Bucket": self._bucket, "Key": key}
        try:
            if if_match is not None and self._conditional.delete_if_match:
                arguments |= if_match_of(if_match)
            elif if_match is not None:
                require_etag("delete", key, self.head(key).etag, if_match)
            self._wire.send("delete", key, partial(self._wire.client.delete_object, **arguments))
        except NotFoundError:
            return
        except ConflictError:
            # SeaweedFS says 412, AWS 404, when there is nothing to compare with.
            with contextlib.suppress(NotFoundError):
                self.head(key)
                raise

    def delete_many(self, keys: Iterable[str | tuple[str, str]]) -> list[DeleteFailure]:
        """See ObjectStore.delete_many."""
        pairs: Pairs = [(item, None) if isinstance(item, str) else item for item in keys]
        for key, etag in pairs:
            check_key("delete", key)
            check_conditions("delete", key, if_none_match=False, if_match=etag)
        failures: list[DeleteFailure] = []
        if not self._conditional.delete_many_if_match:
            failures += self._delete_singly([pair for pair in pairs if pair[1] is not None])
            pairs = [pair for pair in pairs if pair[1] is None]
        return failures + self._delete_all(pairs)

    def _delete_all(self, pairs: Pairs) -> list[DeleteFailure]:
        failures: list[DeleteFailure] = []
        remaining = iter(pairs)
        while batch := list(islice(remaining, DELETE_BATCH)):
            failures += delete_batch(self._wire, self._bucket, batch)
        return failures

    def purge(self, keys: Iterable[str]) -> list[DeleteFailure]:
        """See ObjectStore.purge."""
        good, failures = usable_keys(keys)
        return failures + self._delete_all([(key, None) for key in good])

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ListEntry]:
        """See ObjectStore.list. botocore asks for url encoding and decodes, so keys round-trip."""
        for item in list_items(self._wire, self._bucket, prefix, start_after):
            key = item["Key"]
            if not key.endswith("/") and key > start_after:
                yield _entry(item)

    def folders(self, prefix: str = "") -> Iterator[str]:
        """See ObjectStore.folders."""
        return list_folders(self._wire, self._bucket, prefix)

    def everything(self, prefix: str = "") -> Iterator[ListEntry]:
        """See ObjectStore.everything."""
        return map(_entry, list_items(self._wire, self._bucket, prefix, ""))

    def keeps(self) -> Keeps:
        """See ObjectStore.keeps."""
        return kept_versions(self._wire, self._bucket)

    def markers(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See ObjectStore.markers."""
        for item in list_items(self._wire, self._bucket, prefix, ""):
            key = item["Key"]
            if key.endswith("/") and len(key) > len(prefix):
                with contextlib.suppress(NotFoundError, PermanentError):
                    # What check_key refuses is no directory of ours.
                    yield replace(self.head(key.removesuffix("/"), marker=True), key=key)

    def check(self, prefix: str = "") -> None:
        """See ObjectStore.check: a listing of one key, so rights on the prefix are enough."""
        list_page(self._wire, {"Bucket": self._bucket, "Prefix": prefix, "MaxKeys": 1})

    def abort_uploads(self, prefix: str, older_s: float) -> int:
        """See ObjectStore.abort_uploads."""
        return abort_uploads(self._wire, self._bucket, prefix, older_s)

    def assume(self, conditional: Conditional) -> None:
        """See ObjectStore.assume."""
        self._conditional = conditional

    def close(self) -> None:
        """See ObjectStore.close."""
        self._wire.close()

    def _put_parts(
        self,
        what: tuple[dict[str, str], dict[str, Any], dict[str, str]],
        source: Source,
        standing: Sequence[Standing],
    ) -> dict[str, Any]:
        """Put in parts, of which the server copies what stands there already, if it can."""
        target, attributes, conditions = what
        key = target["Key"]

        def was_ours() -> dict[str, Any] | None:
            return lost_put(self, key, source, attributes)

        if standing and self._composes:
            try:
                answer = upload_parts(self._wire, self._limits, *what, source, was_ours, standing)
            except NotCopiedError:
                # What is missing, or can't be copied, is sent.
                return upload_parts(self._wire, self._limits, *what, source, was_ours)
            info = self.head(key)
            if info.size_bytes == source.size_bytes or info.etag != etag_of(answer):
                return answer
            # A server that copies whole objects where it is asked for a range.
            self._composes = False
            conditions = if_match_of(info.etag)
        return upload_parts(
            self._wire, self._limits, target, attributes, conditions, source, was_ours
        )

    def _sure_etag(
        self, key: str, source: Source, etag: str, was_ours: Callable[[], dict[str, Any] | None]
    ) -> str:
        """The ETag of what was put, when it is certain that this is what was sent.

        Most servers give the MD5. Where it is another one, the object is looked at: something on
        the way may have changed the answer (kept, a wrong ETag would make the next condition fail)
        or the body. A server whose ETags are no MD5 (encryption does that) is not asked again.
        Raises TransientError.
        """
        if not self._md5_etags or is_md5_of(etag, source):
            return etag
        with contextlib.suppress(NotFoundError):
            etag = self.head(key).etag
        if is_md5_of(etag, source):
            return etag
        found = was_ours()
        if found is None:
            raise TransientError("put", key, "what stands there now is not what was sent")
        self._md5_etags = False
        return etag_of(found)

    def _put_conditions(
        self, op: str, key: str, if_none_match: bool, if_match: str | None
    ) -> dict[str, str]:
        """Conditions to send with a put; emulates those that the server would ignore."""
        check_conditions(op, key, if_none_match=if_none_match, if_match=if_match)
        if if_none_match:
            if self._conditional.put_must_create:
                return {"IfNoneMatch": "*"}
            self._require_absent(op, key)
        elif if_match is not None:
            if self._conditional.put_if_match:
                return if_match_of(if_match)
            self._require_current(op, key, if_match)
        return {}

    def _copy_conditions(self, dst: str, if_none_match: bool, if_match: str | None) -> Any:
        check_conditions("copy", dst, if_none_match=if_none_match, if_match=if_match)
        if self._conditional.copy_must_create:
            return self._put_conditions("copy", dst, if_none_match, if_match)
        if if_none_match:
            self._require_absent("copy", dst)
        elif if_match is not None:
            self._require_current("copy", dst, if_match)
        return {}

    def _check_early(self, key: str, if_none_match: bool, if_match: str | None) -> None:
        # Saves a large upload that can't succeed, and some servers ignore If-Match on completion.
        if if_none_match:
            self._require_absent("put", key)
        elif if_match is not None:
            self._require_current("put", key, if_match)

    def _require_absent(self, op: str, key: str) -> None:
        try:
            self.head(key)
        except NotFoundError:
            return
        raise ConflictError(op, key, "the object exists already")

    def _require_current(self, op: str, key: str, etag: str) -> None:
        try:
            found = self.head(key).etag
        except NotFoundError as exc:
            raise ConflictError(op, key, "the object to replace is gone") from exc
        require_etag(op, key, found, etag)

    def _copy_whole(
        self,
        what: tuple[str, str, str | None],
        arguments: dict[str, Any],
        attributes: dict[str, Any],
        keep: bool,
    ) -> dict[str, Any] | None:
        """One CopyObject, or None when the source is too big for that."""
        src, dst, src_if_match = what
        if self._limits.copy_bytes_max < COPY_BYTES_MAX and (
            self.head(src).size_bytes > self._limits.copy_bytes_max
        ):
            return None
        replaced = {} if keep else {"MetadataDirective": "REPLACE", **attributes}
        request = partial(self._wire.client.copy_object, **arguments, **replaced)

        def was_ours() -> dict[str, Any] | None:
            return lost_copy(self, src, dst, src_if_match, None if keep else attributes)

        try:
            answer: dict[str, Any] = self._wire.send(
                "copy", dst, request, was_ours=was_ours, needs=("CopyObjectResult",)
            )
        except PermanentError as exc:
            if exc.detail.startswith(("InvalidRequest", "EntityTooLarge")):
                return None
            raise
        except NotFoundError as exc:
            raise NotFoundError("copy", src, exc.detail) from exc
        return answer

    def _empty_range(self, key: str, if_match: str | None) -> Fetched:
        info = self.head(key)
        if if_match is not None:
            require_etag("get", key, info.etag, if_match)
        return Fetched(b"", info.etag, info.size_bytes)

    def _delete_singly(self, pairs: Pairs) -> _Failures:
        failures = []
        for key, etag in pairs:
            try:
                self.delete(key, if_match=etag)
            except (ConflictError, PermanentError) as exc:
                failures.append(DeleteFailure(key, exc))
        return failures


def _entry(item: dict[str, Any]) -> ListEntry:
    modified_ns = int(item["LastModified"].timestamp() * 1e9)
    return ListEntry(item["Key"], int(item["Size"]), etag_of(item), modified_ns)
