"""Bytes on their way from the bucket."""

from __future__ import annotations

import pytest

from s3ws_fs.core.errors import FormatError
from s3ws_fs.transfer.fetch import read_twice


def test_bytes_spoilt_on_the_way_are_read_again() -> None:
    tries = 0

    def read() -> int:
        nonlocal tries
        tries += 1
        if tries != 2:
            raise FormatError("k", f"spoilt {tries}")
        return tries

    assert read_twice(read) == 2
    with pytest.raises(FormatError, match="spoilt 4"):
        read_twice(read)
