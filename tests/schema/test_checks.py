"""A database on a network file system is told at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.db import connection

from qwenproxy.schema import checks

MOUNTS = r"""
overlay / overlay rw,relatime 0 0
proc /proc proc rw 0 0
/dev/sda1 /srv ext4 rw 0 0
nas:/exports/data /srv/shared nfs4 rw,vers=4.2,addr=10.0.0.9 0 0
//nas/data /mnt/with\040space cifs rw 0 0
user@host:/ /home/ada/remote fuse.sshfs rw 0 0
host /mnt/virtual virtiofs rw 0 0
nas:/old /srv/again nfs rw 0 0
/dev/sdb1 /srv/again xfs rw 0 0
short line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        pytest.param("/var/lib/data.sqlite3", "", id="root"),
        pytest.param("/srv/data.sqlite3", "", id="disk"),
        pytest.param("/srv/shared/data.sqlite3", "nfs4", id="nfs"),
        pytest.param("/srv/sharedness/data.sqlite3", "", id="another-name"),
        pytest.param("/mnt/with space/deep/data.sqlite3", "cifs", id="smb-and-a-space"),
        pytest.param("/home/ada/remote/data.sqlite3", "fuse.sshfs", id="sshfs"),
        pytest.param("/mnt/virtual/data.sqlite3", "", id="a-virtual-machine's"),
        pytest.param("/srv/again/data.sqlite3", "", id="mounted-over"),
    ],
)
def test_the_kind_of_file_system_is_found(path, kind):
    assert checks.network_file_system(Path(path), MOUNTS) == kind


def test_it_is_told_by_the_check(tmp_path, monkeypatch):
    if connection.vendor != "sqlite":
        pytest.skip("of SQLite alone")
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(checks, "_MOUNTS", mounts)
    monkeypatch.setattr(checks, "is_scratch", lambda connection: False)
    assert checks.check_file_system(None) == []
    mounts.write_text("nas:/data / nfs rw 0 0\n")
    [message] = checks.check_file_system(None)
    assert (message.id, message.is_serious()) == ("schema.W001", False)
    assert "network file system (nfs)" in message.msg
