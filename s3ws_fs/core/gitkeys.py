"""What git calls its files, and where the bundles of its repositories stand in the bucket: keys
below the workspace prefix.

    git/workspace.bundle        of the repository at the workspace's root
    git/{escaped path}.bundle   of one below it
    {that key}-more             what is new since that bundle (docs/git.md)

Invariants
1. Two repositories never share a key, and no key is another one's directory: the repository at
   `workspace` has its first letter escaped, and so has the dot of a directory that is named like a
   bundle.
2. `repository_of(bundle_key(path)) == path`.

Called by cache, snapshot, cli and tests.
"""

from __future__ import annotations

import re
from typing import Final

from s3ws_fs.core.layout import escape_path, unescape_name

SIGNS: Final = frozenset({b".git", b"HEAD"})
"""One of these is in every repository."""
TRACES: Final = SIGNS | {b"objects", b"refs", b"packed-refs", b"config", b"index"}
"""One of these is made when a directory becomes a repository, whichever of them comes last."""

GIT_PREFIX: Final = "git/"
BUNDLE_END: Final = ".bundle"
MORE_END: Final = "-more"

_ROOT: Final = "workspace"
_ROOT_ESCAPED: Final = "%77orkspace"
_LIKE_A_BUNDLE: Final = re.compile(r"\.(bundle(?:-more)?)$")


def bundle_key(path: bytes) -> str:
    """Key of the bundle of the repository at `path` (b"" for the root)."""
    if not path:
        return f"{GIT_PREFIX}{_ROOT}{BUNDLE_END}"
    *above, name = escape_path(path).split("/")
    if not above and name == _ROOT:
        name = _ROOT_ESCAPED
    parts = [_LIKE_A_BUNDLE.sub(r"%2E\1", part) for part in above]
    return GIT_PREFIX + "/".join((*parts, name)) + BUNDLE_END


def more_key(path: bytes) -> str:
    """Key of what is new since that bundle."""
    return bundle_key(path) + MORE_END


def repository_of(key: str) -> bytes | None:
    """The path whose bundle's key this is; None when it is no such key."""
    if not key.startswith(GIT_PREFIX) or not key.endswith(BUNDLE_END):
        return None
    text = key[len(GIT_PREFIX) : -len(BUNDLE_END)]
    try:
        path = b"" if text == _ROOT else b"/".join(unescape_name(p) for p in text.split("/"))
        return path if bundle_key(path) == key and b"\0" not in path else None
    except ValueError:
        return None
