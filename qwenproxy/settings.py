"""Django settings, all from the environment: the one place that reads it.

`QWENPROXY_*`, `DATABASE_URL` and the upstream seeds are described in docs/configuration.md. A value
that cannot be used stops the start with the variable's name. Every secret may come from a file named
by `<VARIABLE>_FILE`.
"""

from __future__ import annotations

import os
import secrets
import time
from datetime import UTC, tzinfo
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

from qwenproxy import __version__
from qwenproxy.wire.redaction import Redaction, compile_rules

BASE_DIR = Path(__file__).resolve().parent.parent
_T = TypeVar("_T", bound=str)
_D = TypeVar("_D")
_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


# What each variable stands at, for the health page: its value (null: a secret, never told), and whether
# it is set.
CONFIGURED: dict[str, tuple[object, bool]] = {}


def _text(name: str, default: str = "") -> str:
    value = os.environ.get(name, default).strip()
    CONFIGURED[name] = (value, bool(os.environ.get(name, "").strip()))
    return value


def _defaulted(name: str, default: _D) -> _D:
    CONFIGURED[name] = (default, False)
    return default


def _bool(name: str, default: bool) -> bool:
    value = _text(name).lower()
    if not value:
        return _defaulted(name, default)
    if value not in _TRUE | _FALSE:
        raise ImproperlyConfigured(f"{name} must be true or false, not {value!r}")
    return value in _TRUE


def _number(name: str, default: float, *, minimum: float = 0) -> float:
    value = _text(name)
    if not value:
        return _defaulted(name, default)
    try:
        number = float(value)
    except ValueError as exc:
        raise ImproperlyConfigured(f"{name} must be a number, not {value!r}") from exc
    if not minimum <= number < float("inf"):
        raise ImproperlyConfigured(f"{name} must be at least {minimum:g}, not {value}")
    return number


def _whole(name: str, default: int, *, minimum: int = 0, maximum: int = 2**53) -> int:
    number = _number(name, default, minimum=minimum)
    if number != int(number) or number > maximum:
        raise ImproperlyConfigured(
            f"{name} must be a whole number up to {maximum}, not {_text(name)}"
        )
    return int(number)


def _days(name: str) -> int | None:
    """Null: for ever."""
    return _whole(name, 1, minimum=1, maximum=36_500) if _text(name) else None


def _choice(name: str, default: _T, *others: _T) -> _T:
    value = _text(name) or _defaulted(name, default)
    for choice in (default, *others):
        if value == choice:
            return choice
    choices = ", ".join((default, *others))
    raise ImproperlyConfigured(f"{name} must be one of {choices}, not {value!r}")


def _address(name: str) -> tuple[str, int] | None:
    """Of `host:port`; a host with colons stands in brackets."""
    value = _text(name)
    if not value:
        return None
    host, _, port = value.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ImproperlyConfigured(
            f"{name} must be an address and a port such as 127.0.0.1:8101, not {value!r}"
        )
    return host, int(port)


def _networks(name: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(item) for item in _list(name))
    except ValueError as exc:
        raise ImproperlyConfigured(
            f"{name} must be addresses or networks such as 10.0.0.0/8: {exc}"
        ) from exc


def _zone(name: str) -> tzinfo:
    value = _text(name)
    if value in ("", "UTC"):
        # Also where the system has no time zones.
        return UTC if value else _defaulted(name, UTC)
    try:
        return ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ImproperlyConfigured(
            f"{name} must be a time zone such as Asia/Shanghai, not {value!r}"
        ) from exc


def _list(name: str) -> list[str]:
    return [item.strip() for item in _text(name).split(",") if item.strip()]


def _secret(name: str) -> str:
    path = os.environ.get(f"{name}_FILE", "").strip()
    value = os.environ.get(name, "").strip()
    CONFIGURED[name] = (None, bool(path or value))
    if not path:
        return value
    if value:
        raise ImproperlyConfigured(f"set {name} or {name}_FILE, not both")
    try:
        # A named file that cannot be read must not turn into "no secret".
        return Path(path).read_text().strip()
    except OSError as exc:
        raise ImproperlyConfigured(f"{name}_FILE: {exc}") from exc


def _url(name: str) -> str:
    value = _text(name).rstrip("/")
    if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
        raise ImproperlyConfigured(f"{name} must be an http(s) URL, not {value!r}")
    return value


DEBUG = _bool("QWENPROXY_DEBUG", False)
HOST = _text("QWENPROXY_HOST", "127.0.0.1")
PORT = _whole("QWENPROXY_PORT", 8100, maximum=65535)
# Where the admin is served, and then nowhere else; null: beside the API.
ADMIN_BIND = _address("QWENPROXY_ADMIN_BIND")
if ADMIN_BIND is not None and ADMIN_BIND[1] == PORT:
    # The port tells where a request came in: an address may be any of the machine's.
    raise ImproperlyConfigured("QWENPROXY_ADMIN_BIND needs another port than QWENPROXY_PORT")
# Whose X-Forwarded-For is believed.
TRUSTED_PROXIES = _networks("QWENPROXY_TRUSTED_PROXIES")
DATA_DIR = Path(_text("QWENPROXY_DATA_DIR") or BASE_DIR / "data").expanduser().absolute()
PUBLIC_URL = _url("QWENPROXY_PUBLIC_URL")
# Whose hours and days statistics are cut into.
REPORTING_ZONE = _zone("QWENPROXY_TIME_ZONE")
# Of whose content the admin shows anything: of no turn, of failed ones, of all.
PAYLOADS = _choice("QWENPROXY_PAYLOADS", "all", "errors", "off")

# --- database ---

_database_url = _secret("DATABASE_URL")
USES_SQLITE = not _database_url or _database_url.startswith("sqlite:")
if _database_url and not _database_url.startswith(("sqlite:", "postgres:", "postgresql:")):
    raise ImproperlyConfigured("DATABASE_URL must begin with postgres:// or sqlite://")


def _database_of(name: str, url: str) -> dict[str, Any]:
    try:
        database: dict[str, Any] = dict(dj_database_url.parse(url, conn_max_age=0))
    except ValueError as exc:
        raise ImproperlyConfigured(f"{name} cannot be read: {exc}") from exc
    if not url.startswith("sqlite:"):
        database["OPTIONS"] = {
            # By it a start knows who else uses the database.
            "application_name": "qwenproxy",
            **database.get("OPTIONS", {}),
            # A network that swallows packets must not hold the recorder beyond its deadline.
            "connect_timeout": 10,
            "tcp_user_timeout": 15_000,
            # The same of a server that is gone once it has taken a statement; the system's own time is hours.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
        }
    return database


_database = _database_of(
    "DATABASE_URL", _database_url or f"sqlite:///{DATA_DIR / 'qwenproxy.sqlite3'}"
)
# SQLite: what is deleted is written over, and the log emptied, so that no file holds it any more.
SECURE_DELETE = _bool("QWENPROXY_SECURE_DELETE", False)
if USES_SQLITE:
    _database["OPTIONS"] = {
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        # FULL: with group commit it costs what NORMAL costs, and survives power loss.
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
        + (" PRAGMA secure_delete=ON;" if SECURE_DELETE else ""),
    }
if not _database_url:
    try:
        # Conversations are nobody else's on this machine.
        DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ImproperlyConfigured(
            f"cannot make QWENPROXY_DATA_DIR ({DATA_DIR}): {exc.strerror}"
        ) from exc
DATABASES = {"default": _database}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def _generated(name: str, file_name: str) -> str:
    """Read a secret that SQLite installations make for themselves, once, mode 0600."""
    path = DATA_DIR / file_name
    DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        # Of processes that start at once another may have made it, and not written it yet.
        ends = time.monotonic() + 1
        while not (value := path.read_text().strip()) and time.monotonic() < ends:
            time.sleep(0.01)
        if not value:
            raise ImproperlyConfigured(
                f"{path} is empty: restore it from a backup, or delete it"
            ) from None
        return value
    value = secrets.token_urlsafe(48)
    with os.fdopen(descriptor, "w") as file:
        file.write(value + "\n")
        file.flush()
        os.fsync(file.fileno())
    return value


def _own_secret(name: str, file_name: str) -> str:
    value = _secret(name)
    if value or not USES_SQLITE:
        return value
    try:
        return _generated(name, file_name)
    except OSError as exc:
        raise ImproperlyConfigured(
            f"cannot keep secrets in QWENPROXY_DATA_DIR ({DATA_DIR}): {exc.strerror}; set {name}"
        ) from exc


# With PostgreSQL both must be set (checks.py says so); an empty SECRET_KEY stops Django by itself.
SECRET_KEY = _own_secret("QWENPROXY_SECRET_KEY", "secret_key")
ENCRYPTION_KEYS = [
    key.strip()
    for key in _own_secret("QWENPROXY_ENCRYPTION_KEYS", "encryption_keys").split(",")
    if key.strip()
]
if any(len(key) < 32 for key in ENCRYPTION_KEYS):
    raise ImproperlyConfigured("QWENPROXY_ENCRYPTION_KEYS: each key needs at least 32 characters")

# --- first start ---

FIRST_API_KEY = _secret("QWENPROXY_API_KEY")
ADMIN_USER = _text("QWENPROXY_ADMIN_USER", "admin")
ADMIN_PASSWORD = _secret("QWENPROXY_ADMIN_PASSWORD")
SEED_QWEN = {
    "base_url": _url("QWEN_BASE_URL"),
    "cookies": _secret("QWEN_COOKIES"),
    "token": _secret("QWEN_TOKEN"),
    "user_agent": _text("QWEN_USER_AGENT"),
}
SEED_DASHSCOPE = {
    "base_url": _url("DASHSCOPE_BASE_URL"),
    "api_key": _secret("DASHSCOPE_API_KEY"),
}
SEED_OPENAI_COMPATIBLE = {
    "base_url": _url("OPENAI_COMPATIBLE_BASE_URL"),
    "api_key": _secret("OPENAI_COMPATIBLE_API_KEY"),
}

# --- changes of the schema ---

# Who is named in the history; empty: the user of the operating system.
ACTOR = _text("QWENPROXY_ACTOR")
MIGRATE_ON_START: Literal["auto", "check", "off"] = _choice(
    "QWENPROXY_MIGRATE_ON_START", "auto", "check", "off"
)
MIGRATE_TRANSACTIONS: Literal["all", "each"] = _choice("QWENPROXY_MIGRATE_TX", "all", "each")
MIGRATE_LOCK_WAIT_S = _number("QWENPROXY_MIGRATE_LOCK_WAIT_S", 60)
MIGRATE_LOCK_TIMEOUT_S = _number("QWENPROXY_MIGRATE_LOCK_TIMEOUT_S", 5, minimum=0.1)
MIGRATE_WAIT_FOR_DATABASE_S = _number("QWENPROXY_MIGRATE_WAIT_FOR_DATABASE_S", 30)
MIGRATE_BACKUP: Literal["auto", "always", "never"] = _choice(
    "QWENPROXY_MIGRATE_BACKUP", "auto", "always", "never"
)
MIGRATE_BACKUP_DIR = (
    Path(_text("QWENPROXY_MIGRATE_BACKUP_DIR")).expanduser().absolute()
    if _text("QWENPROXY_MIGRATE_BACKUP_DIR")
    else None
)
MIGRATE_BACKUP_KEEP = _whole("QWENPROXY_MIGRATE_BACKUP_KEEP", 5, minimum=1)
MIGRATE_BACKUP_BYTES = int(_number("QWENPROXY_MIGRATE_BACKUP_MAX_MB", 10240) * 2**20)
# The way to PostgreSQL itself, for those who change the schema; null where it is the usual one.
_migrate_database_url = _secret("QWENPROXY_MIGRATE_DATABASE_URL")
if _migrate_database_url and (
    USES_SQLITE or not _migrate_database_url.startswith(("postgres:", "postgresql:"))
):
    raise ImproperlyConfigured(
        "QWENPROXY_MIGRATE_DATABASE_URL is for PostgreSQL, beside a DATABASE_URL of the same database"
    )
MIGRATE_DATABASE = (
    _database_of("QWENPROXY_MIGRATE_DATABASE_URL", _migrate_database_url)
    if _migrate_database_url
    else None
)
# As configured, here and there: a database of tests has another name.
DATABASE_NAMES = {str(found["NAME"]) for found in (_database, MIGRATE_DATABASE) if found}
MIGRATE_BREAKING: Literal["warn", "refuse"] = _choice(
    "QWENPROXY_MIGRATE_BREAKING", "warn", "refuse"
)
MIGRATE_DRIFT: Literal["refuse", "warn"] = _choice("QWENPROXY_MIGRATE_DRIFT", "refuse", "warn")

# --- the gateway ---

QWEN_PARENT_RULE: Literal["response_id", "parent_id"] = _choice(
    "QWENPROXY_QWEN_PARENT_RULE", "response_id", "parent_id"
)
MAX_BODY_BYTES = int(_number("QWENPROXY_MAX_BODY_MB", 32) * 2**20)
MAX_CONNECTIONS = _whole("QWENPROXY_MAX_CONNECTIONS", 4096, minimum=1)
REQUEST_TIMEOUT_S = _number("QWENPROXY_REQUEST_TIMEOUT_S", 30, minimum=0.1)
SEND_BUFFER_BYTES = int(_number("QWENPROXY_SEND_BUFFER_MB", 16) * 2**20)
MAX_ANSWER_CHARS = int(_number("QWENPROXY_MAX_ANSWER_MB", 16, minimum=0.001) * 2**20)
SEND_TIMEOUT_S = _number("QWENPROXY_SEND_TIMEOUT_S", 120, minimum=0.1)
TURN_TIMEOUT_S = _number("QWENPROXY_TURN_TIMEOUT_S", 1800, minimum=0.1)
CONNECT_TIMEOUT_S = _number("QWENPROXY_CONNECT_TIMEOUT_S", 10, minimum=0.1)
UPSTREAM_IDLE_TIMEOUT_S = _number("QWENPROXY_UPSTREAM_IDLE_TIMEOUT_S", 180, minimum=0.1)
KEEP_ALIVE_S = _number("QWENPROXY_KEEP_ALIVE_S", 15, minimum=0.1)
DRAIN_TIMEOUT_S = _number("QWENPROXY_DRAIN_TIMEOUT_S", 30)
UPSTREAM_RETRIES = _whole("QWENPROXY_UPSTREAM_RETRIES", 2, maximum=10)
ACCOUNT_WAIT_S = _number("QWENPROXY_ACCOUNT_WAIT_S", 30)
# What a turn does when its client leaves; empty: finish on the web upstream, cancel elsewhere.
ON_CLIENT_LEFT = _text("QWENPROXY_ON_CLIENT_LEFT")
if ON_CLIENT_LEFT not in ("", "finish", "cancel"):
    raise ImproperlyConfigured("QWENPROXY_ON_CLIENT_LEFT must be finish or cancel")
FETCH_URLS = _bool("QWENPROXY_FETCH_URLS", False)
# In which member of a chat completion's message thinking is.
REASONING_FIELD = _choice(
    "QWENPROXY_REASONING_FIELD", "reasoning_content", "reasoning", "both", "none"
)
RESERVED_TOKENS = _whole("QWENPROXY_RESERVED_TOKENS", 1024, minimum=1)
DEFAULT_MODEL = _text("QWENPROXY_DEFAULT_MODEL")
MODELS_TTL_S = _number("QWENPROXY_MODELS_TTL_S", 300, minimum=1)
SESSION_TTL_H = _number("QWENPROXY_SESSION_TTL_H", 24)
RECORDER_QUEUE_TURNS = _whole("QWENPROXY_RECORDER_QUEUE_TURNS", 2048, minimum=1)
RECORDER_DEADLINE_S = _number("QWENPROXY_RECORDER_DEADLINE_S", 15)
# After a session's last use, then what was said in it goes, or all of it; null: never. Keys have their own.
CONTENT_DAYS = _days("QWENPROXY_CONTENT_DAYS")
RECORD_DAYS = _days("QWENPROXY_RECORD_DAYS")
METRICS_OPEN = _bool("QWENPROXY_METRICS_OPEN", False)
CORS_ORIGINS = _list("QWENPROXY_CORS_ORIGINS") or ["*"]
DISCOVER_UPSTREAMS = _bool("QWENPROXY_DISCOVER", True)


def _redaction() -> Redaction:
    path = _text("QWENPROXY_REDACT_FILE")
    try:
        lines = Path(path).read_text().splitlines() if path else []
    except (OSError, UnicodeDecodeError) as exc:
        raise ImproperlyConfigured(f"QWENPROXY_REDACT_FILE: {exc}") from exc
    rules = [line.strip() for line in lines if not line.lstrip().startswith("#")]
    try:
        # Each rule may hold commas: only those with names are listed in the variable.
        return compile_rules([*_list("QWENPROXY_REDACT"), *filter(None, rules)])
    except ValueError as exc:
        raise ImproperlyConfigured(f"QWENPROXY_REDACT: {exc}") from exc


def _record_headers() -> frozenset[str]:
    names = {name.lower() for name in _list("QWENPROXY_RECORD_HEADERS") or ["user-agent"]}
    secret = names & {"authorization", "cookie", "proxy-authorization", "x-api-key", "api-key"}
    if secret:
        raise ImproperlyConfigured(
            f"QWENPROXY_RECORD_HEADERS: {', '.join(sorted(secret))} carries secrets"
        )
    return frozenset(names - {"none"})


# What is replaced before anything is stored or logged, and the request headers that are stored.
REDACTION = _redaction()
RECORD_HEADERS = _record_headers()


def _aliases() -> list[tuple[str, str]]:
    pairs = []
    for item in _list("QWENPROXY_MODEL_ALIASES") or ["gpt-*=", "claude-*=", "o1*=", "o3*=", "o4*="]:
        pattern, separator, target = item.partition("=")
        if not separator or not pattern.strip():
            raise ImproperlyConfigured(
                f"QWENPROXY_MODEL_ALIASES: {item!r} is not pattern=model (an empty model is the default)"
            )
        pairs.append((pattern.strip(), target.strip()))
    return pairs


# Shell-style pattern -> model id; an empty id stands for the default model.
MODEL_ALIASES = _aliases()
# Shell-style patterns of names of accounts whose server has no `response_format`.
JSON_BY_INSTRUCTION_ACCOUNTS = _list("QWENPROXY_JSON_BY_INSTRUCTION_ACCOUNTS")

# --- Django ---

ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", *_list("QWENPROXY_ALLOWED_HOSTS")]
for _host in (HOST, ADMIN_BIND[0] if ADMIN_BIND else ""):
    _name = f"[{_host}]" if ":" in _host else _host
    if _host not in ("0.0.0.0", "::", "") and _name not in ALLOWED_HOSTS:  # noqa: S104  # compared
        ALLOWED_HOSTS.append(_name)
if PUBLIC_URL:
    ALLOWED_HOSTS.append(urlsplit(PUBLIC_URL).hostname or "")
    CSRF_TRUSTED_ORIGINS = ["{0.scheme}://{0.netloc}".format(urlsplit(PUBLIC_URL))]
if PUBLIC_URL.startswith("https:"):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SECURE_HSTS_SECONDS = 3600
    # `check --deploy`. Sub-domains and browsers' lists are for the domain's owner to decide, and http is
    # sent to https by the proxy with the certificate: here probes and the admin's own address speak http.
    SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W008", "security.W021"]

INSTALLED_APPS = [
    "qwenproxy.apps.GatewayConfig",
    "qwenproxy.apps.GatewayAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "ninja",
    "qwenproxy.access.apps.AccessConfig",
    "qwenproxy.schema.apps.SchemaConfig",
    "sessions_app.apps.SessionsAppConfig",
    "requests_app.apps.RequestsAppConfig",
    "qwenproxy.dashboard.apps.DashboardConfig",
]
# For the admin alone: /v1 runs on asgi_handler with an empty middleware list.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "qwenproxy.admin_pages.AdminPages",
]
ROOT_URLCONF = "qwenproxy.urls"
ASGI_APPLICATION = "qwenproxy.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "qwenproxy" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LANGUAGE_CODE = "en-us"
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "qwenproxy" / "static"]
APPEND_SLASH = True
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_NAME = "qwenproxy_session"
SESSION_COOKIE_AGE = 12 * 3600
DATA_UPLOAD_MAX_MEMORY_SIZE = max(MAX_BODY_BYTES, 2**20)
VERSION = __version__

LOG_FORMAT = _choice("QWENPROXY_LOG_FORMAT", "text", "json")
LOG_LEVEL = _choice("QWENPROXY_LOG_LEVEL", "INFO", "DEBUG", "WARNING", "ERROR")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "text": {"()": "qwenproxy.logs.TextFormatter"},
        "json": {"()": "qwenproxy.logs.JSONFormatter"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        name: {"handlers": ["stderr"], "level": LOG_LEVEL, "propagate": False}
        for name in ("qwenproxy", "sessions_app", "requests_app")
    },
}
