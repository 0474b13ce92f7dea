"""The Dockerfile's steps in a root directory of their own, in their order: what they make, then the image's
command and its health check by their own paths, as the image's user, on a root that is read-only.

Two are not taken: `FROM`, whose place this machine's system takes, and the installation of packages, whose
place this environment takes. Needs root and mounts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import NO_TLS
from tests.doubles.server import unused_port
from tests.test_container import ROOT, instructions, is_allowed, last

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
_ACCOUNTS = ("passwd", "group", "shadow", "gshadow", "login.defs", "ld.so.cache", "nsswitch.conf")


class Image:
    """`root` is the image's; steps change it as they are taken."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {"PATH": "/opt/venv/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        for name in ("proc", "dev", "tmp", "etc", "opt/venv", sys.base_prefix[1:]):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in _ACCOUNTS:
            if (source := Path("/etc", name)).exists():
                shutil.copy2(source, root / "etc" / name)
        self._binds = {"/proc": "/proc", "/dev": "/dev", sys.prefix: "/opt/venv"}
        self._binds[sys.base_prefix] = sys.base_prefix
        for name in _SYSTEM:
            if Path(name).is_symlink():
                (root / name[1:]).symlink_to(os.readlink(name))
            elif Path(name).exists():
                (root / name[1:]).mkdir(exist_ok=True)
                self._binds[name] = name

    def command(self, *command: str, is_running: bool = False) -> list[str]:
        """To run a command in the image: as a step of its build, or as its user on a read-only root."""
        root = self.root
        mounts = ["mount --make-rprivate /", f"mount --bind {root} {root}"]
        mounts += [f"mount --rbind {source} {root}{place}" for source, place in self._binds.items()]
        if is_running:
            mounts += [
                f"mount --bind {root}{last('VOLUME')} {root}{last('VOLUME')}",
                f"mount -o bind,remount,ro {root}",
                f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp",
            ]
            user, _, group = last("USER").partition(":")
            command = (
                *("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"),
                *("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", *command),
            )
        inside = " && ".join(mounts) + f' && cd {root} && exec chroot {root} "$@"'
        return ["unshare", "--mount", "sh", "-c", inside, "sh", *command]

    def build(self) -> None:
        """Take each step; what the first stage makes lies where the last one copies it from and to."""
        for name, arguments in instructions():
            if name == "COPY" and "--from" not in arguments:
                *sources, target = arguments.split()
                place = self.root / "app" / target
                for source in sources:
                    self._copy(ROOT / source, place)
            elif name == "COPY":
                _, source, target = arguments.split()
                assert source == target
                assert (self.root / target[1:]).is_dir()
            elif name == "ENV":
                self.environ |= dict(pair.split("=", 1) for pair in arguments.split())
            elif name == "RUN" and "pip install" not in arguments:
                done = subprocess.run(
                    self.command("/bin/sh", "-c", arguments),
                    env=self.environ, capture_output=True, text=True,
                )  # fmt: skip
                assert done.returncode == 0, f"{arguments}: {done.stderr}"

    def _copy(self, source: Path, place: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place)
        # A builder keeps modes, and a checkout may be its owner's alone.
        subprocess.run(["chmod", "-R", "go-rwx", self.root / "app"], check=True)


@pytest.fixture
def image() -> Iterator[Image]:
    if os.getuid() != 0 or not is_allowed("unshare", "--mount", "mount", "--make-rprivate", "/"):
        pytest.skip("NO ROOT, OR NO MOUNTS: the image's steps are not taken")
    # Not in pytest's directory, which is its user's alone.
    base = Path(tempfile.mkdtemp(prefix="qwenproxy-steps-"))
    base.chmod(0o755)
    yield Image(base)
    shutil.rmtree(base)


def test_the_image_s_steps_make_what_its_command_and_its_health_check_need(image):
    image.build()
    user, _, group = last("USER").partition(":")
    data = (image.root / "data").stat()
    assert (str(data.st_uid), str(data.st_gid)) == (user, group)
    assert stat.S_IMODE(data.st_mode) == 0o700
    assert re.search(
        rf"^qwenproxy:x:{user}:{group}:", (image.root / "etc/passwd").read_text(), re.M
    )
    code = list((image.root / "app").rglob("*.pyc"))
    assert len(code) > 100
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044 for path in code)

    port = str(unused_port())
    environ = image.environ | {"QWENPROXY_HOST": "127.0.0.1", "QWENPROXY_PORT": port}
    environ["QWENPROXY_DISCOVER"] = "false"
    health = json.loads(last("HEALTHCHECK").partition("CMD ")[2])

    def is_healthy() -> bool:
        probe = image.command(*health, is_running=True)
        return subprocess.run(probe, env=environ, capture_output=True, timeout=60).returncode == 0

    assert not is_healthy()
    started = image.command(
        *json.loads(last("ENTRYPOINT")), *json.loads(last("CMD")), is_running=True
    )
    with subprocess.Popen(
        started, env=environ, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as serving:  # fmt: skip
        try:
            said = ""
            for line in serving.stdout:
                said += line
                if line.startswith("Serving on"):
                    break
            assert serving.poll() is None, said
            assert f"127.0.0.1:{port}" in said, said
            status = Path(f"/proc/{serving.pid}/status").read_text()
            assert re.search(rf"^Uid:\t{user}\b", status, re.MULTILINE)
            assert is_healthy()
            answer = httpx.get(f"http://127.0.0.1:{port}/readyz", verify=NO_TLS, timeout=30)
            assert answer.status_code == 200
            assert (image.root / "data" / "qwenproxy.sqlite3").exists()
        finally:
            serving.terminate()
            serving.communicate(timeout=60)
    assert serving.returncode == 0
    assert not is_healthy()
