"""A repository's own configuration, and what of it a restored one gets.

Invariants
1. What is kept is named here; whatever could name a program, a file to be read, another
   configuration, or another place for what a command is about to reach, is not.
2. The configuration as it was stays beside the new one, as data (`config.original`).

Called by snapshot.git.restoring.
"""

from __future__ import annotations

import re
from typing import Final

_CORE: Final = (
    "filemode|ignorecase|autocrlf|eol|safecrlf|symlinks|abbrev|quotepath|precomposeunicode"
    "|sparsecheckout|sparsecheckoutcone|logallrefupdates|trustctime|checkstat|whitespace"
    "|commentchar|compression|bigfilethreshold|checkroundtripencoding|notesref"
)
_KEPT: Final = re.compile(
    rf"core\.({_CORE})"
    r"|user\.(name|email|useconfigonly|signingkey)|(author|committer)\.(name|email)"
    r"|branch\.(.*\.)?(remote|merge|rebase|pushremote|description|autosetupmerge|autosetuprebase|sort)"
    r"|remote\..*\.(url|pushurl|fetch|push|mirror|tagopt|prune|prunetags|skipdefaultupdate)"
    r"|remote\..*\.(promisor|partialclonefilter)|remote\.pushdefault"
    r"|submodule\..*\.(url|active|branch|ignore|shallow)|submodule\.(active|recurse)"
    r"|extensions\.(worktreeconfig|partialclone)"
    r"|(init|pull|rebase|merge|commit|status|color|advice|log|i18n|notes|rerere|format|tag|stash"
    r"|column|apply|blame|index|push|fetch|feature)\.(?!.*(path|file|template|hook|tool|driver|uri|directory))[a-z]+",
    re.DOTALL,
)
_URL: Final = re.compile(
    r"(https?|ssh|git|file)://(?!-)(?![^/]*@-)[^\0]*"
    r"|/[^\0]*|[\w.@~][\w.@~-]*:(?!//)[^:\0-][^\0]*|\.{1,2}/[^\0]*"
)
"""Not `ext::` and other helpers' forms."""


def kept(name: str, value: str) -> bool:
    """Whether a restored repository gets this setting."""
    section, _, rest = name.partition(".")
    sub, dot, key = rest.rpartition(".")
    plain = f"{section.lower()}.{sub + dot if sub else ''}{key.lower()}"
    if not _KEPT.fullmatch(plain):
        return False
    return not plain.endswith(("url",)) or bool(_URL.fullmatch(value))


def render(settings: list[tuple[str, str]]) -> str:
    """A configuration file of these settings."""
    lines: list[str] = []
    for name, value in settings:
        section, _, rest = name.partition(".")
        sub, dot, key = rest.rpartition(".")
        lines.append(f'[{section} "{_quoted(sub)}"]' if dot else f"[{section}]")
        # A subsection knows no letters for control characters, and no line's end.
        text = _quoted(value).replace("\n", "\\n").replace("\t", "\\t").replace("\0", "")
        lines.append(f'\t{key} = "{text}"')
    return "".join(f"{line}\n" for line in lines)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
