"""A container's root file system: private, writable, new with each attempt."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

_HOSTS = """\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
"""


def create_root(folder: Path, *, hostname: str, address: str, working_dir: str) -> Path:
    """Lay out a new root below `folder`, in the place of the one before; returns its path.

    It holds what every Linux container has: /etc/hosts, /etc/hostname, /etc/resolv.conf, /tmp, and the working
    directory.
    """
    root = folder / "root"
    if root.exists():
        shutil.rmtree(root)
    (root / "etc").mkdir(parents=True)
    (root / "tmp").mkdir(mode=0o1777)
    (root / "etc/hosts").write_text(f"{_HOSTS}{address}\t{hostname}\n")
    (root / "etc/hostname").write_text(f"{hostname}\n")
    (root / "etc/resolv.conf").write_text(_resolv_conf())
    inside = PurePosixPath("/", *(part for part in PurePosixPath(working_dir).parts if part not in ("/", "..")))
    (root / inside.relative_to("/")).mkdir(parents=True, exist_ok=True)
    return root


def _resolv_conf() -> str:
    try:
        return Path("/etc/resolv.conf").read_text()
    except OSError:
        return ""
