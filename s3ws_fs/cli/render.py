"""Status documents and directory entries as text.

Invariants
1. Pure: dictionaries and entries in, lines out; every foreign string goes through `safe`.
2. A member that a daemon of another version leaves out shows as "-", it never fails.

Called by cli.commands.
"""

from __future__ import annotations

import stat
import time
from typing import Any, Final

from s3ws_fs.cache.inspect import Entry
from s3ws_fs.cli.render_git import git_lines
from s3ws_fs.cli.report import human_bytes, human_seconds, is_finite, safe, safe_name
from s3ws_fs.launch.end import counted

_LABEL_COLUMNS: Final = 10
_LISTED_MAX: Final = 20


def status_lines(document: dict[str, Any]) -> list[str]:
    """One mount for a person."""
    state = str(document.get("state", "-"))
    lines = [safe(str(document.get("mountpoint", "-")))]
    workspace, store = _part(document, "workspace"), _part(document, "store")
    lines.append(_line("state", f"{state}, {_daemon(document, state)}"))
    lines.append(_line("workspace", str(workspace.get("prefix", "-"))))
    lines.append(_line("store", str(store.get("location", "-"))))
    if state == "dead":
        return lines + _dead_lines(document)
    if "generation" not in document:
        error = _part(document, "error").get("message")
        return [*lines, _line("daemon", str(error))] if error else lines
    return lines + _live_lines(document)


def _daemon(document: dict[str, Any], state: str) -> str:
    pid = document.get("pid", "-")
    if state == "dead":
        return f"its daemon {pid} is gone"
    up = document.get("uptime_s")
    since = f", up {human_seconds(up)}" if isinstance(up, int | float) else ""
    return f"daemon {pid}{since}{_restarts(_part(document, 'holder'))}"


def _restarts(holder: dict[str, Any]) -> str:
    count = _number(holder, "restarts")
    if not count:
        return ""
    why = holder.get("restarted_by")
    return f", {counted(count, 'restart')}" + (f" (last: {why})" if why else "")


def _dead_lines(document: dict[str, Any]) -> list[str]:
    cache = _part(document, "cache")
    lines = [_line("cache", str(cache.get("path", "-")))]
    left = document.get("unsaved")
    if not isinstance(left, dict):
        return [*lines, _line("unsaved", "unknown: the cache can't be read")]
    return [
        *lines,
        _line(
            "unsaved",
            f"{counted(_number(left, 'records'), 'change')} "
            f"({counted(_number(left, 'files'), 'file')}), "
            f"{_number(left, 'unmirrored')} not mirrored;"
            " mount again to go on saving",
        ),
    ]


def _live_lines(document: dict[str, Any]) -> list[str]:
    generation, dirty = _part(document, "generation"), _part(document, "dirty")
    flush, health = _part(document, "flush"), _part(document, "health")
    quota, mirror = _part(document, "quota"), _part(document, "mirror")
    saving = [
        _line("saved", _saved(generation)),
        _line("dirty", _dirty(dirty)),
        _line("flush", _flush(flush)),
    ]
    lines = [
        *_showing(document, saving),
        _line("health", _health(health)),
        _line(
            "quota",
            f"{human_bytes(_number(quota, 'used_bytes'))} of "
            f"{human_bytes(_number(quota, 'max_bytes'))}, {_number(quota, 'used_inodes')} of "
            f"{counted(_number(quota, 'max_inodes'), 'file')}"
            + ("; NEARLY FULL" if quota.get("warning") else ""),
        ),
    ]
    lines += _cache_lines(_part(document, "cache"))
    hydration = _part(document, "hydration")
    if _number(hydration, "cold_files"):
        lines.append(
            _line(
                "cold",
                f"{counted(_number(hydration, 'cold_files'), 'file')}, "
                f"{human_bytes(_number(hydration, 'cold_bytes'))} still only in the bucket",
            )
        )
    lines += _backup_lines(_part(document, "backup"))
    lines += [_line("git", text) for text in git_lines(document.get("git"))]
    outside = _outside_lines(_part(document, "outside"))
    return lines + _mirror_lines(mirror) + outside + _rot_lines(hydration)


def _backup_lines(backup: dict[str, Any]) -> list[str]:
    last, kept = _part(backup, "last"), _part(backup, "emergency")
    said = []
    if last:
        size = human_bytes(_number(last, "bytes"))
        said.append(f"{last.get('name')}, {human_seconds(backup.get('age_s'))} ago, {size}")
    if backup.get("running"):
        said.append(f"{backup['running']} now")
    if backup.get("error"):
        said.append(f"FAILED at {backup.get('error_at')}: {backup['error']}")
    lines = [_line("backup", "; ".join(said))] if said else []
    if kept:
        lines.append(_line("backup", f"kept in {kept.get('path')}: {kept.get('why')}"))
    return lines


def _cache_lines(cache: dict[str, Any]) -> list[str]:
    room, kept = _part(cache, "room"), cache.get("quarantines")
    said = [room.get("reason"), cache.get("sync_point_error"), cache.get("recovered")]
    lines = [_line("cache", text) for text in dict.fromkeys(str(text) for text in said if text)]
    titles = {"quarantines": "kept in quarantine (see `s3ws check`; remove what nobody needs)"}
    return lines + (_listed_lines("cache", cache, titles) if kept else [])


def _saved(generation: dict[str, Any]) -> str:
    head, sealed, mirrored = (generation.get(name, "-") for name in ("head", "sealed", "mirrored"))
    # The one thing a person looks for comes first.
    verdict = "everything: " if isinstance(head, int) and head == sealed == mirrored else ""
    return f"{verdict}head {head}, sealed {sealed}, mirrored {mirrored}"


def _showing(document: dict[str, Any], saving: list[str]) -> list[str]:
    """What a read-only mount shows; of another one how far it is saved."""
    follow, point = document.get("follow"), document.get("point")
    if isinstance(follow, dict):
        return [_line("shows", _shown(follow))]
    if not isinstance(point, dict):
        return saving
    text = f"read-only, point #{point.get('number', '-')} ({point.get('ref', '-')})"
    lines = [_line("shows", text + _sealed_when(point) + "; it stays as it is")]
    return lines + ([_line("point", str(point["error"]))] if point.get("error") else [])


def _sealed_when(shown: dict[str, Any]) -> str:
    text = f", generation {shown.get('generation', '-')}"
    sealed_at_s = shown.get("sealed_at_s")
    if is_finite(sealed_at_s):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(sealed_at_s))
        text += f", sealed {when} by {shown.get('sealed_by') or '-'}"
    return text


def _shown(follow: dict[str, Any]) -> str:
    text = f"read-only, segment {follow.get('segment', '-')}" + _sealed_when(follow)
    looked = follow.get("looked_age_s")
    if looked is None:
        return f"{text}; how far behind is not known"
    return f"{text}; nothing newer {human_seconds(looked)} ago"


def _dirty(dirty: dict[str, Any]) -> str:
    if dirty and not _number(dirty, "records") and not _number(dirty, "files"):
        return "nothing"
    return (
        f"{counted(_number(dirty, 'files'), 'file')}, {human_bytes(_number(dirty, 'bytes'))}, "
        f"oldest {human_seconds(dirty.get('oldest_age_s'))}"
    )


def _flush(flush: dict[str, Any]) -> str:
    text = str(flush.get("state", "-"))
    due = flush.get("next_due_s")
    if due is not None:
        text += f", next due in {human_seconds(due)}"
    sealed = flush.get("last_sealed_age_s")
    return text + (f", last sealed {human_seconds(sealed)} ago" if sealed is not None else "")


def _health(health: dict[str, Any]) -> str:
    text = str(health.get("state", "-"))
    if health.get("since_s") is not None:
        text += f" for {human_seconds(health['since_s'])}"
    return text + (f": {health['error']}" if health.get("error") else "")


def _mirror_lines(mirror: dict[str, Any]) -> list[str]:
    titles = {"unmirrored": "not under files/", "conflicts": "changed outside"}
    return _listed_lines("mirror", mirror, titles)


def _outside_lines(outside: dict[str, Any]) -> list[str]:
    lines = []
    events = outside.get("events")
    if isinstance(events, list) and events:
        count = _number(outside, "count")
        lines.append(_line("outside", f"{counted(count, 'change')} by others; the last ones:"))
        for event in events[-_LISTED_MAX:]:
            if isinstance(event, dict):
                text = f"{event.get('when')} {event.get('path')}: {event.get('what')}"
                if event.get("copy"):
                    text += f" ({event['copy']})"
                lines.append(f"    {safe(text)}")
    return lines + _listed_lines("outside", outside, {"left": "left alone in the bucket"})


def _rot_lines(hydration: dict[str, Any]) -> list[str]:
    titles = {
        "damaged": "damaged in the bucket (see `s3ws check --bucket`)",
        "second_copies": "damaged in the journal, another copy was used",
    }
    return _listed_lines("bucket", hydration, titles)


def _listed_lines(label: str, part: dict[str, Any], titles: dict[str, str]) -> list[str]:
    lines = []
    for name, title in titles.items():
        items = part.get(name)
        if not isinstance(items, list) or not items:
            continue
        lines.append(_line(label, f"{len(items)} {title}:"))
        for item in items[:_LISTED_MAX]:
            path, reason = (
                (item.get("path"), item.get("reason")) if isinstance(item, dict) else (item, None)
            )
            lines.append(f"    {safe(str(path))}" + (f" ({safe(str(reason))})" if reason else ""))
        if len(items) > _LISTED_MAX:
            lines.append(f"    and {len(items) - _LISTED_MAX} more")
    return lines


def _line(label: str, text: str) -> str:
    return f"  {label:<{_LABEL_COLUMNS}} {safe(text)}"


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _number(part: dict[str, Any], name: str) -> int:
    value = part.get(name)
    return int(value) if is_finite(value) else 0


def entry_line(directory: bytes, entry: Entry, *, long: bool) -> str:
    """One entry for a person; times are local."""
    name = safe_name(directory + b"/" + entry.name if directory else entry.name)
    if not long:
        return name + ("/" if stat.S_ISDIR(entry.attr.mode) else "")
    attr = entry.attr
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attr.mtime_ns // 1_000_000_000))
    arrow = f" -> {safe_name(entry.target)}" if stat.S_ISLNK(attr.mode) else ""
    return (
        f"{stat.filemode(attr.mode)} {attr.nlink:>3} {attr.uid:>6} {attr.gid:>6} {attr.size:>12} "
        f"{when} {entry.state:<8} {entry.warmth:<7} {name}{arrow}"
    )
