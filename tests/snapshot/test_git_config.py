"""What of a configuration a restored repository gets: nothing that names a program or a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3ws_fs.snapshot.git.config import kept, render
from tests.support import programs

KEPT = [
    ("core.autocrlf", "input"),
    ("CORE.FileMode", "false"),
    ("user.name", "Somebody"),
    ("branch.main.remote", "origin"),
    ("branch.a.b.c.merge", "refs/heads/a.b.c"),
    ("remote.origin.url", "https://example.invalid/x.git"),
    ("remote.origin.url", "git@example.invalid:x.git"),
    ("remote.origin.url", "../beside"),
    ("remote.origin.url", "/absolute"),
    ("remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"),
    ("submodule.vendor/x.url", "https://example.invalid/y.git"),
    ("pull.rebase", "true"),
    ("merge.conflictStyle", "diff3"),
    ("extensions.worktreeConfig", "true"),
]
DROPPED = [
    ("core.fsmonitor", "/bin/evil"),
    ("core.sshCommand", "evil"),
    ("core.hooksPath", ".husky"),
    ("core.editor", "evil"),
    ("core.pager", "evil"),
    ("core.askPass", "evil"),
    ("core.gitProxy", "evil"),
    ("core.attributesFile", "/etc/x"),
    ("core.excludesFile", "/etc/x"),
    ("core.worktree", "/elsewhere"),
    ("core.alternateRefsCommand", "evil"),
    ("alias.status", "!evil"),
    ("filter.lfs.clean", "git-lfs clean"),
    ("filter.lfs.process", "evil"),
    ("diff.external", "evil"),
    ("diff.x.textconv", "evil"),
    ("merge.x.driver", "evil"),
    ("merge.tool", "evil"),
    ("mergetool.x.cmd", "evil"),
    ("credential.helper", "!evil"),
    ("include.path", "../more"),
    ("includeIf.gitdir:/.path", "more"),
    ("gpg.program", "evil"),
    ("sequence.editor", "evil"),
    ("url.ext::evil .insteadOf", "https://"),
    ("http.proxy", "http://evil"),
    ("http.cookieFile", "/x"),
    ("protocol.ext.allow", "always"),
    ("uploadpack.packObjectsHook", "evil"),
    ("remote.origin.url", "ext::sh -c evil"),
    ("remote.origin.url", "evil::x"),
    ("remote.origin.url", "-oProxyCommand=evil"),
    ("remote.origin.url", "ssh://-oProxyCommand=evil/x"),
    ("remote.origin.url", "ssh://me@-oProxyCommand=evil/x"),
    ("remote.origin.url", "-oProxyCommand=evil:x"),
    ("fetch.bundleURI", "https://evil/"),
    ("format.outputDirectory", "/x"),
    ("remote.origin.uploadpack", "evil"),
    ("remote.origin.receivepack", "evil"),
    ("remote.origin.vcs", "evil"),
    ("remote.origin.pushurl", "ext::evil"),
    ("submodule.x.update", "!evil"),
    ("submodule.x.url", "ext::evil"),
    ("commit.template", "/x"),
    ("init.templateDir", "/x"),
    ("pager.log", "evil"),
    ("interactive.diffFilter", "evil"),
    ("trailer.x.command", "evil"),
    ("sendemail.smtpServer", "/bin/evil"),
    ("safe.directory", "*"),
    ("extensions.partialClone\n", "x"),
]


@pytest.mark.parametrize(("name", "value"), KEPT)
def test_kept(name: str, value: str) -> None:
    assert kept(name, value)


@pytest.mark.parametrize(("name", "value"), DROPPED)
def test_put_aside(name: str, value: str) -> None:
    assert not kept(name, value)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["core.eol", "branch.a.remote", 'remote.we"ird\\ name.url']),
            st.text(
                st.characters(blacklist_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\"'\\#;")
            ),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_git_reads_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, settings: list[tuple[str, str]]
) -> None:
    file: Path = tmp_path_factory.mktemp("config") / "config"
    file.write_text(render(settings))
    out = programs.run("git", "config", "--file", file, "-z", "--list")
    assert [tuple(item.split("\n", 1)) for item in out.split("\0")[:-1]] == settings
