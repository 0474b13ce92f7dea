"""Settings of the tests: the real ones, with state in a directory of its own per run."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# In memory where there is room: what a process that dies has written stays, synced or not.
_memory = "/dev/shm"
if "TMPDIR" not in os.environ and os.access(_memory, os.W_OK):
    _found = os.statvfs(_memory)
    if _found.f_bavail * _found.f_frsize > 4 * 2**30 and not _found.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = _memory
_directory = tempfile.mkdtemp(prefix="qwenproxy-tests-")
atexit.register(shutil.rmtree, _directory, ignore_errors=True)
for _name in list(os.environ):
    if _name.startswith(("QWENPROXY_", "QWEN_", "DASHSCOPE_", "OPENAI_")) and (
        _name != "QWENPROXY_TEST_DATABASE_URL"
    ):
        del os.environ[_name]
os.environ["QWENPROXY_DATA_DIR"] = _directory
os.environ["DATABASE_URL"] = os.environ.get("QWENPROXY_TEST_DATABASE_URL", "")
os.environ.setdefault("QWENPROXY_SECRET_KEY", "tests-only-" + "k" * 50)
os.environ.setdefault("QWENPROXY_ENCRYPTION_KEYS", "tests-only-" + "e" * 40)
os.environ["QWENPROXY_DISCOVER"] = "false"

from qwenproxy.settings import *  # noqa: E402, F403
from qwenproxy.settings import DATABASES, USES_SQLITE  # noqa: E402

if USES_SQLITE:
    # A file, as in production: servers in threads and processes share it.
    DATABASES["default"]["TEST"] = {"NAME": os.path.join(_directory, "test.sqlite3")}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
