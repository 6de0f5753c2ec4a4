"""Which directories a guest gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmlet.runtime.directories import directories


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("app/work", "etc", "data"):
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "root" / "file").touch()
    (tmp_path / "volume" / "work").mkdir(parents=True)
    return tmp_path / "root"


def found(root: Path, working_dir: str, *more: tuple[str, str, bool]) -> dict[str, tuple[str, bool]]:
    """Name to host path and whether it is read only, in order."""
    return {
        entry.name: (_real(entry.host), entry.read_only)
        for entry in directories([(str(root), "/", False), *more], working_dir)
    }


def _real(host: str) -> str:
    return str(Path(host).readlink()) if host.startswith("/proc") else host


@pytest.mark.parametrize("working_dir", ["/", "", "//", "/."])
def test_at_the_root_nothing_is_added(root: Path, working_dir: str) -> None:
    assert found(root, working_dir) == {"/": (str(root), False)}


def test_elsewhere_the_directory_is_last_and_the_roots_are_named(root: Path) -> None:
    entries = found(root, "/app/work")
    assert list(entries) == ["/", "/app", "/data", "/etc", "."]
    assert entries["."] == (f"{root}/app/work", False)
    assert entries["/etc"] == (f"{root}/etc", False)


def test_a_mount_covers_the_roots_directory(root: Path, tmp_path: Path) -> None:
    entries = found(root, "/data/work", (f"{tmp_path}/volume", "/data", True))
    assert entries["/data"] == (f"{tmp_path}/volume", True)
    assert entries["."] == (f"{tmp_path}/volume/work", True)


def test_a_mount_below_leaves_the_directory_above(root: Path, tmp_path: Path) -> None:
    entries = found(root, "/app", (f"{tmp_path}/volume", "/data/deep", True))
    assert entries["/data"] == (f"{root}/data", False)
    assert entries["/data/deep"] == (f"{tmp_path}/volume", True)


def test_names_are_compared_by_their_parts(root: Path, tmp_path: Path) -> None:
    (root / "data2").mkdir()
    assert found(root, "/data2", (f"{tmp_path}/volume", "/data", True))["."] == (f"{root}/data2", False)


def test_links_stay_inside(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to("/app")
    (root / "out").symlink_to("../../volume")
    entries = found(root, "/link/work")
    assert entries["."] == (f"{root}/app/work", False)
    assert entries["/link"] == (f"{root}/app", False)
    assert "/out" not in entries


def test_one_that_is_missing_is_an_error(root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        found(root, "/gone")
