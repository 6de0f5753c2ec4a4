"""Which directories a guest gets, and under which names, so that its paths mean what they would in a Linux container.

Libraries of guests find a path by the longest name of a preopened directory that it begins with. Go starts relative
paths at the variable PWD. wasi-libc (C, C++, Rust, Python) knows no initial working directory: it drops the leading
slash and treats `data` and `/data` alike. So a guest whose working directory is not the root gets it as `.`, which
wasi-libc prefers to `/`, and every directory of the root by its own name, so that absolute paths still reach them.
What remains for wasi-libc: the root's own files, and directories made in it later, are not reached by an absolute path,
and a relative path whose first part is also a directory of the root means that one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SYS_OPENAT2 = 437
# https://man7.org/linux/man-pages/man2/openat2.2.html
_RESOLVE_IN_ROOT = 0x10
_libc = ctypes.CDLL(None, use_errno=True)

# Host path, the guest's name for it, read only.
Mount = tuple[str, str, bool]


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory of the host for the guest to open."""

    host: str
    name: str
    read_only: bool


def directories(mounts: list[Mount], working_dir: str) -> Iterator[Directory]:
    """Yield what to preopen, in order. Paths may be ones of open descriptors, which are left open.

    Raises:
        OSError: the working directory cannot be opened.
    """
    for host, name, read_only in mounts:
        yield Directory(host, name, read_only)
    parts = [part for part in working_dir.split("/") if part not in ("", ".")]
    if not parts:
        return
    taken = {name.strip("/") for _, name, _ in mounts}
    for host, name, read_only in mounts:
        if name == "/":
            for entry in sorted(path.name for path in Path(host).iterdir()):
                if entry not in taken and (inside := _inside(host, entry)) is not None:
                    yield Directory(inside, f"/{entry}", read_only)
    found = _mount_of(mounts, parts)
    if found is not None:
        (host, _, read_only), rest = found
        yield Directory(_open_inside(host, rest), ".", read_only)


def _mount_of(mounts: list[Mount], parts: list[str]) -> tuple[Mount, str] | None:
    """The mount with the longest name that the path lies in, and the rest of the path."""
    best: tuple[Mount, str] | None = None
    depth = -1
    for mount in mounts:
        above = [part for part in mount[1].split("/") if part]
        if len(above) > depth and parts[: len(above)] == above:
            best, depth = (mount, "/".join(parts[len(above) :])), len(above)
    return best


def _inside(root: str, name: str) -> str | None:
    try:
        return _open_inside(root, name)
    except OSError:
        # No directory, or a link that leads to none.
        return None


def _open_inside(root: str, path: str) -> str:
    """A host path of a directory below `root`. A link in it, made by a guest perhaps, never leads out of the root."""
    how = _OpenHow(os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = _libc.syscall(_SYS_OPENAT2, top, (path or ".").encode(), ctypes.byref(how), ctypes.sizeof(how))
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(top)
    return f"/proc/self/fd/{fd}"
