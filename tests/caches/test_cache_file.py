"""A cache's file on a disk that is full."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dpo.caches.sqlite import CacheFile
from dpo.errors import DiskFull


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of one page; needs the right to mount."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs more rights")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize("left", [0, 1, 4, 8])
def test_a_full_disk_is_called_full_wherever_sqlite_meets_it(small_disk, left):
    (small_disk / "other").write_bytes(b"x" * (1 << 16) if not left else b"x" * ((1 << 16) - left * 4096))
    cache = CacheFile(small_disk / "rows.sqlite", "CREATE TABLE IF NOT EXISTS rows (text)", "cache of rows")

    def fill(db):
        for _ in range(40):
            db.execute("INSERT INTO rows VALUES (?)", ("x" * 4096,))
        db.commit()

    with pytest.raises(DiskFull, match="no room"):
        cache.once(fill)
