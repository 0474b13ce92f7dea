"""The image, the compose files and the systemd unit: what they say fits the code, and their commands run
as they do there: as nobody, on a read-only root, with the data directory and /tmp to write to.

No image is built here: that needs a daemon and a registry.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import jsonschema
import pytest
import yaml

from qwenproxy.management.commands.serve import _GRACE_S
from tests.conftest import NO_TLS
from tests.doubles.server import unused_port
from tests.test_docs import file_variables, settings_variables

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ("compose.yaml", "compose.postgresql.yaml")
UNIT = ROOT / "deploy" / "qwenproxy.service"
NOBODY = "65534"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, in order, each with its arguments on one line."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(words[0], words[1]) for line in lines if (words := line.split(maxsplit=1))]


def last(name: str) -> str:
    return [arguments for found, arguments in instructions() if found == name][-1]


def copied() -> list[str]:
    """What comes from the checkout."""
    found = [a.split()[:-1] for n, a in instructions() if n == "COPY" and "--from" not in a]
    return [source for sources in found for source in sources]


def compose(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


def unit() -> dict[str, str]:
    lines = [line for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


def test_the_image_is_made_of_what_the_gateway_needs_and_nothing_else_reaches_the_builder():
    assert all((ROOT / name).exists() for name in copied())
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored[1:] if line[0] == "!"} == set(copied())
    assert ignored[-1] == "**/__pycache__"
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages < set(copied())


def test_bases_are_pinned_and_the_process_has_no_rights():
    [base] = [arguments for name, arguments in instructions() if name == "ARG"]
    assert re.fullmatch(r"PYTHON=3\.1[1-9]-slim-\w+", base)
    assert {a.split()[0] for n, a in instructions() if n == "FROM"} == {"python:${PYTHON}"}
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last("USER"))
    assert last("VOLUME") == "/data"
    assert last("STOPSIGNAL") == "SIGTERM"
    # Only then signals reach the process.
    assert all(json.loads(last(name)) for name in ("ENTRYPOINT", "CMD"))
    assert not re.search(r"-dev\.txt|curl|SECRET|PASSWORD|TOKEN", (ROOT / "Dockerfile").read_text())


@pytest.mark.parametrize("name", COMPOSE)
def test_a_compose_file_runs_the_gateway_hardened(name):
    service = compose(name)["services"]["gateway"]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert "privileged" not in service
    assert "data:/data" in service["volumes"]
    # From this machine alone, unless somebody says otherwise.
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.mark.parametrize("name", COMPOSE)
def test_a_compose_file_is_one_by_the_specification_s_schema(name):
    schema = json.loads((ROOT / "tests" / "fixtures" / "compose_spec.json").read_text())["schema"]
    found = compose(name)
    jsonschema.Draft7Validator(schema).validate(found)
    # It would have seen another name.
    found["services"]["gateway"]["readonly"] = True
    with pytest.raises(jsonschema.ValidationError, match="readonly"):
        jsonschema.Draft7Validator(schema).validate(found)


def test_no_core_dump_is_left_by_whatever_starts_the_gateway():
    assert unit()["LimitCORE"] == "0"
    assert all(compose(name)["services"]["gateway"]["ulimits"]["core"] == 0 for name in COMPOSE)


@pytest.mark.parametrize("name", COMPOSE)
def test_names_in_a_compose_file_are_the_settings_own(name):
    text = (ROOT / name).read_text()
    given = compose(name)["services"]["gateway"]["environment"]
    known = set(settings_variables()) | {f"{secret}_FILE" for secret in file_variables()}
    assert set(given) | set(re.findall(r"\$\{(\w+)", text)) <= known
    # No secret stands in the file itself.
    assert not set(given) & set(file_variables())


def test_every_secret_of_the_compose_file_is_given_and_told_how_to_make():
    found = compose("compose.postgresql.yaml")
    used = {name for service in found["services"].values() for name in service["secrets"]}
    assert used == set(found["secrets"])
    guide = (ROOT / "docs" / "install.md").read_text()
    for name, secret in found["secrets"].items():
        assert secret["file"] == f"./secrets/{name}"
        assert f"secrets/{name}" in guide
    for service in found["services"].values():
        named = [v for k, v in service["environment"].items() if k.endswith("_FILE")]
        assert sorted(named) == sorted(f"/run/secrets/{name}" for name in service["secrets"])
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_what_stops_the_gateway_waits_for_its_drain(settings):
    needs_s = settings.DRAIN_TIMEOUT_S + _GRACE_S
    for name in COMPOSE:
        assert int(compose(name)["services"]["gateway"]["stop_grace_period"][:-1]) > needs_s
    assert int(unit()["TimeoutStopSec"]) > needs_s


def test_the_database_of_the_compose_file_is_reached_by_the_gateway_alone():
    found = compose("compose.postgresql.yaml")
    database = found["services"]["postgresql"]
    assert "ports" not in database
    assert database["networks"] == ["database"]
    assert found["networks"]["database"]["internal"] is True
    waits = found["services"]["gateway"]["depends_on"]["postgresql"]["condition"]
    assert waits == "service_healthy"
    assert database["healthcheck"]["test"]


def test_the_unit_starts_what_the_image_starts():
    started, inside = shlex.split(unit()["ExecStart"]), [*json.loads(last("ENTRYPOINT")), "serve"]
    assert [Path(part).name for part in started] == [Path(part).name for part in inside]
    # The gateway tells systemd nothing.
    assert unit()["Type"] == "exec"
    assert unit()["StateDirectory"] == "qwenproxy"
    assert "QWENPROXY_DATA_DIR=/var/lib/qwenproxy" in UNIT.read_text()


def test_systemd_has_nothing_against_the_unit(tmp_path):
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("SYSTEMD IS NOT INSTALLED: the unit is not verified")
    # It looks for the program as well.
    copy = tmp_path / UNIT.name
    copy.write_text(
        UNIT.read_text()
        .replace("/opt/qwenproxy/.venv/bin/python", sys.executable)
        .replace("/opt/qwenproxy", str(ROOT))
    )
    verified = subprocess.run([program, "verify", copy], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    rated = subprocess.run(
        [program, "security", "--offline=true", "--no-pager", copy], capture_output=True, text=True
    )
    assert float(re.search(r"exposure level for \S+ ([\d.]+)", rated.stdout)[1]) < 2


def is_allowed(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def walls(*writable: Path) -> list[str]:
    """For root: a read-only root file system, then nobody's rights. Others have the modes alone."""
    if os.getuid() != 0:
        return []
    command = []
    if is_allowed("unshare", "--mount", "true"):
        mounts = ["mount --make-rprivate /", "mount -o bind,remount,ro /"]
        for path in writable:
            mounts += [f"mount --bind {path} {path}", f"mount -o bind,remount,rw {path}"]
        command += ["unshare", "--mount", "sh", "-c", f'{" && ".join(mounts)} && exec "$@"', "sh"]
    nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    nobody += ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    # Nobody may not reach packages that lie in root's home.
    return command + nobody if is_allowed(*nobody, sys.executable, "-c", "") else command


class Contained:
    """The image's directories on this machine: `app` to read, `data` and `tmp` to write."""

    def __init__(self, base: Path) -> None:
        self.app, self.data, tmp = base / "app", base / "data", base / "tmp"
        for name in copied():
            # Byte code of the checkout is no part of the image.
            ignore = shutil.ignore_patterns("__pycache__")
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.app / name, ignore=ignore)
            else:
                self.app.mkdir(exist_ok=True)
                shutil.copy2(ROOT / name, self.app)
        subprocess.run(["chmod", "-R", "a-w,a+rX", self.app], check=True)
        for path in (self.data, tmp):
            path.mkdir(mode=0o700)
            if os.getuid() == 0:
                os.chown(path, int(NOBODY), int(NOBODY))
        self.port = str(unused_port())
        image = dict(pair.split("=", 1) for pair in last("ENV").split())
        assert image["QWENPROXY_DATA_DIR"] == "/data"
        self._environ = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp), **image} | {
            "QWENPROXY_DATA_DIR": str(self.data),
            "QWENPROXY_HOST": "127.0.0.1",
            "QWENPROXY_PORT": self.port,
            "QWENPROXY_DISCOVER": "false",
        }
        self.walls = walls(self.data, tmp)
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Run a command of the image as it is run there."""
        here = {"/opt/venv/bin/python": sys.executable, "/app/manage.py": f"{self.app}/manage.py"}
        process = subprocess.Popen(
            [*self.walls, *(here.get(part, part) for part in command)],
            cwd=self.app, env=self._environ, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.running.append(process)
        return process

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def contained() -> Iterator[Contained]:
    # Not in pytest's directory, which is its user's alone.
    base = Path(tempfile.mkdtemp(prefix="qwenproxy-image-"))
    base.chmod(0o755)
    contained = Contained(base)
    yield contained
    contained.end()
    subprocess.run(["chmod", "-R", "u+w", base], check=True)
    shutil.rmtree(base)


@pytest.mark.slow
def test_the_image_s_commands_serve_record_and_stop_as_nobody_on_a_read_only_root(contained):
    health = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    probe = contained.start(*health)
    probe.communicate(timeout=30)
    assert probe.returncode != 0

    serving = contained.start(*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD")))
    said = ""
    for line in serving.stdout:
        said += line
        if line.startswith("Serving on"):
            break
    assert f"127.0.0.1:{contained.port}" in said
    key = re.search(r"API key +(\S+)", said)[1]
    if "setpriv" in contained.walls:
        status = Path(f"/proc/{serving.pid}/status").read_text()
        assert re.search(rf"^Uid:\t{NOBODY}\b", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    answer = httpx.post(
        f"http://127.0.0.1:{contained.port}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "Hello!"}]},
        headers={"Authorization": f"Bearer {key}"},
        verify=NO_TLS, timeout=30,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    probe = contained.start(*health)
    told, _ = probe.communicate(timeout=30)
    assert probe.returncode == 0, told

    serving.send_signal(getattr(signal, last("STOPSIGNAL")))
    serving.communicate(timeout=60)
    assert serving.returncode == 0
    with closing(sqlite3.connect(contained.data / "qwenproxy.sqlite3")) as record:
        assert record.execute("SELECT status FROM requests_app_response").fetchall() == [
            ("completed",)
        ]
    assert not list(contained.app.rglob("__pycache__"))


@pytest.mark.slow
def test_a_data_directory_that_cannot_be_written_is_named(contained):
    if os.getuid() == 0 and "setpriv" not in contained.walls:
        pytest.skip("NOBODY MAY NOT RUN THIS PYTHON: root writes everywhere")
    contained.data.chmod(0o500)
    serving = contained.start(*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD")))
    said, _ = serving.communicate(timeout=60)
    assert serving.returncode not in (0, None)
    assert str(contained.data) in said
    assert "Traceback" not in said
