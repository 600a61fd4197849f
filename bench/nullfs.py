"""The floor: a FUSE filesystem in pyfuse3 that keeps everything in RAM and promises nothing.

1. The kernel gets the same options as from our mount: the same attribute, entry and absence
   timeouts, pages kept over open, no kernel write-back cache, permissions checked by the kernel,
   `flush` and `access` answered ENOSYS once.
2. Everything else is stock: trio, pyfuse3's own wait for requests, no extended attributes (so
   unlike our mount it is not asked for security.capability before each write).
3. Names, bytes and times behave as on a disk, so that git and sqlite work; nothing is durable.

Run by bench.targets: `python -m bench.nullfs MOUNTPOINT` prints "ready" and serves until unmounted.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Sequence
from typing import Final

import pyfuse3
import trio

KERNEL_CACHE_S: Final = 86_400.0
IO_BLOCK_BYTES: Final = 128 * 1024
FREE_BLOCKS: Final = 1 << 24
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


class Node:
    """One inode. `children` is set for directories only."""

    __slots__ = (
        "atime_ns",
        "children",
        "ctime_ns",
        "data",
        "gid",
        "ino",
        "mode",
        "mtime_ns",
        "nlink",
        "parent",
        "rdev",
        "uid",
    )

    def __init__(self, ino: int, mode: int, uid: int, gid: int, parent: int) -> None:
        self.ino = ino
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.parent = parent
        self.rdev = 0
        self.data = bytearray()
        self.children: dict[bytes, int] | None = {} if stat.S_ISDIR(mode) else None
        self.nlink = 2 if self.children is not None else 1
        self.atime_ns = self.mtime_ns = self.ctime_ns = time.time_ns()


class NullFs(pyfuse3.Operations):
    """pyfuse3's handlers over a dict of nodes."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self) -> None:
        super().__init__()
        root = Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, os.getuid(), os.getgid(), 1)
        self._nodes: dict[int, Node] = {root.ino: root}
        self._next_ino = root.ino + 1
        self._listings: dict[int, list[tuple[bytes, int]]] = {}
        self._next_listing = 1
        self._absent = pyfuse3.EntryAttributes()
        self._absent.st_ino = 0
        self._absent.entry_timeout = KERNEL_CACHE_S

    def _children(self, ino: int) -> dict[bytes, int]:
        children = self._nodes[ino].children
        if children is None:
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return children

    def _child(self, parent: int, name: bytes) -> Node:
        ino = self._children(parent).get(name)
        if ino is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._nodes[ino]

    def _entry(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.ino
        entry.attr_timeout = KERNEL_CACHE_S
        entry.entry_timeout = KERNEL_CACHE_S
        entry.st_mode = node.mode
        entry.st_nlink = node.nlink
        entry.st_uid = node.uid
        entry.st_gid = node.gid
        entry.st_rdev = node.rdev
        entry.st_size = len(node.data)
        entry.st_blksize = IO_BLOCK_BYTES
        entry.st_blocks = (len(node.data) + 511) // 512
        entry.st_atime_ns = node.atime_ns
        entry.st_mtime_ns = node.mtime_ns
        entry.st_ctime_ns = node.ctime_ns
        return entry

    def _touch(self, parent: int) -> None:
        node = self._nodes[parent]
        node.mtime_ns = node.ctime_ns = time.time_ns()

    def _make(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> Node:
        children = self._children(parent)
        if name in children:
            raise pyfuse3.FUSEError(errno.EEXIST)
        node = Node(self._next_ino, mode, ctx.uid, ctx.gid, parent)
        self._next_ino += 1
        self._nodes[node.ino] = node
        children[name] = node.ino
        self._touch(parent)
        return node

    def _drop(self, parent: int, name: bytes) -> None:
        node = self._child(parent, name)
        del self._children(parent)[name]
        node.nlink = 0 if node.children is not None else node.nlink - 1
        node.ctime_ns = time.time_ns()
        if node.children is not None:
            self._nodes[parent].nlink -= 1
        self._touch(parent)

    # --- names ---------------------------------------------------------------------------------

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        ino = self._children(parent_inode).get(name)
        return self._absent if ino is None else self._entry(self._nodes[ino])

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        node = self._make(parent_inode, name, stat.S_IFREG | (mode & ~ctx.umask & 0o7777), ctx)
        return pyfuse3.FileInfo(fh=node.ino, keep_cache=True), self._entry(node)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        node = self._make(parent_inode, name, mode & ~ctx.umask, ctx)
        node.rdev = rdev
        return self._entry(node)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        node = self._make(parent_inode, name, stat.S_IFDIR | (mode & ~ctx.umask & 0o7777), ctx)
        self._nodes[parent_inode].nlink += 1
        return self._entry(node)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        node = self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.data += target
        return self._entry(node)

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return bytes(self._nodes[inode].data)

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        children = self._children(new_parent_inode)
        if new_name in children:
            raise pyfuse3.FUSEError(errno.EEXIST)
        node = self._nodes[inode]
        children[new_name] = inode
        node.nlink += 1
        node.ctime_ns = time.time_ns()
        self._touch(new_parent_inode)
        return self._entry(node)

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._drop(parent_inode, name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        if self._child(parent_inode, name).children:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        self._drop(parent_inode, name)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if flags & RENAME_EXCHANGE:
            raise pyfuse3.FUSEError(errno.EINVAL)
        node = self._child(parent_inode_old, name_old)
        target = self._children(parent_inode_new).get(name_new)
        if target == node.ino:
            return
        if target is not None:
            if flags & RENAME_NOREPLACE:
                raise pyfuse3.FUSEError(errno.EEXIST)
            if self._nodes[target].children:
                raise pyfuse3.FUSEError(errno.ENOTEMPTY)
            self._drop(parent_inode_new, name_new)
        del self._children(parent_inode_old)[name_old]
        self._children(parent_inode_new)[name_new] = node.ino
        if node.children is not None:
            self._nodes[parent_inode_old].nlink -= 1
            self._nodes[parent_inode_new].nlink += 1
            node.parent = parent_inode_new
        node.ctime_ns = time.time_ns()
        self._touch(parent_inode_old)
        self._touch(parent_inode_new)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, _ in inode_list:
            node = self._nodes.get(inode)
            if node is not None and node.nlink == 0:
                del self._nodes[inode]

    # --- attributes ----------------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(self._nodes[inode])

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        node = self._nodes[inode]
        node.ctime_ns = time.time_ns()
        if fields.update_mode:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_size:
            self._resize(node, attr.st_size)
        if fields.update_atime:
            node.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            node.mtime_ns = attr.st_mtime_ns
        return self._entry(node)

    @staticmethod
    def _resize(node: Node, size: int) -> None:
        if size < len(node.data):
            del node.data[size:]
        else:
            node.data.extend(bytes(size - len(node.data)))
        node.mtime_ns = node.ctime_ns

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = FREE_BLOCKS
        data.f_files = data.f_ffree = data.f_favail = FREE_BLOCKS
        data.f_namemax = 255
        return data

    # --- files ---------------------------------------------------------------------------------

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_TRUNC:
            self._resize(self._nodes[inode], 0)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(self._nodes[fh].data[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node = self._nodes[fh]
        if off > len(node.data):
            node.data.extend(bytes(off - len(node.data)))
        node.data[off : off + len(buf)] = buf
        node.mtime_ns = node.ctime_ns = time.time_ns()
        return len(buf)

    async def flush(self, fh: int) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    async def release(self, fh: int) -> None:
        return None

    async def fsync(self, fh: int, datasync: bool) -> None:
        return None

    # --- directories ---------------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        node = self._nodes[inode]
        handle = self._next_listing
        self._next_listing += 1
        dots = [(b".", inode), (b"..", node.parent)]
        self._listings[handle] = dots + list(self._children(inode).items())
        return handle

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listing = self._listings[fh]
        for index in range(start_id, len(listing)):
            name, ino = listing[index]
            node = self._nodes.get(ino)
            if node is None:
                continue
            if not pyfuse3.readdir_reply(token, name, self._entry(node), index + 1):
                return

    async def releasedir(self, fh: int) -> None:
        del self._listings[fh]

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        return None


def main() -> None:
    """Serve on the mount point named by argv until it is unmounted."""
    mountpoint = sys.argv[1]
    options = {"default_permissions", "fsname=bench-null", "subtype=bench-null"}
    pyfuse3.init(NullFs(), mountpoint, options)
    print("ready", flush=True)
    try:
        trio.run(pyfuse3.main)
    except BaseException:
        pyfuse3.close(unmount=True)
        raise
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    main()
