"""Facts about the machine that the node runs on."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine; sizes in bytes."""

    hostname: str
    address: str
    cpus: int
    memory: int
    disk: int
    machine_id: str
    system_uuid: str
    boot_id: str
    kernel: str
    os_image: str

    @classmethod
    def read(cls, disk_path: Path) -> Machine:
        """Look at the machine; its disk is the one that holds `disk_path`."""
        return cls(
            hostname=socket.gethostname().lower(),
            address=_address(),
            cpus=len(os.sched_getaffinity(0)),
            memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            disk=shutil.disk_usage(disk_path).total,
            machine_id=_line(Path("/etc/machine-id")),
            system_uuid=_line(Path("/sys/class/dmi/id/product_uuid")),
            boot_id=_line(Path("/proc/sys/kernel/random/boot_id")),
            kernel=platform.release(),
            os_image=_os_image(),
        )


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _os_image() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _address() -> str:
    """The address that the default route would send from; loopback where there is no network. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address
