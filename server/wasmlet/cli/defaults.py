"""Where things are when nobody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path


def state_dir() -> Path:
    """`/var/lib/wasmlet` for root, else below the user's state directory (XDG)."""
    if os.geteuid() == 0:
        return Path("/var/lib/wasmlet")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "wasmlet"


def listen() -> str:
    """A unix socket: `/run/wasmlet/wasmlet.sock` for root, else below the user's runtime directory (XDG)."""
    if os.geteuid() == 0:
        folder = Path("/run")
    else:
        folder = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    return f"unix://{folder}/wasmlet/wasmlet.sock"
