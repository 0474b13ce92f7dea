"""System checks of where the database is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Warning, register
from django.db import connection

from qwenproxy.schema.locking import is_scratch

_MOUNTS = Path("/proc/mounts")
# Their locks may not hold between machines, and what one has written another may not see.
_NETWORK = re.compile(
    r"nfs4?|cifs|smb\w*|ncpfs|afs|davfs|glusterfs"
    r"|fuse\.(sshfs|smbnetfs|glusterfs|rclone|s3fs|gcsfuse|davfs2?|mount\.davfs)"
)


@register("qwenproxy")
def check_file_system(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if connection.vendor != "sqlite" or is_scratch(connection):
        return []
    try:
        mounts = _MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        # No Linux: nobody tells.
        return []
    path = Path(str(connection.settings_dict["NAME"])).resolve()
    kind = network_file_system(path, mounts)
    if not kind:
        return []
    return [
        Warning(
            f"{path} is on a network file system ({kind}), where SQLite's locks may not hold.",
            hint="Put QWENPROXY_DATA_DIR on a disk of this machine, or use PostgreSQL.",
            id="schema.W001",
        )
    ]


def network_file_system(path: Path, mounts: str) -> str:
    """The kind of network file system that an absolute path is on, by /proc/mounts; empty for a disk."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[1])
        # Of several at one place the last one is seen.
        if path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), fields[2]
    return kind if _NETWORK.fullmatch(kind) else ""
