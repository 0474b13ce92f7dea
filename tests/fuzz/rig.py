"""A serving process with three hostile upstreams, and what cases need to know of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx

from tests.conftest import NO_TLS
from tests.doubles.server import serve_in_thread
from tests.faults.gateway import Gateway
from tests.faults.load import read_rows
from tests.faults.torture import SERVER, new_database
from tests.fuzz import bodies
from tests.fuzz.cases import Known
from tests.fuzz.upstreams import HostileOpenAI, HostileWeb

_SETTINGS = {
    "QWENPROXY_ADMIN_PASSWORD": "a-password-of-the-rig",
    "QWENPROXY_MAX_BODY_MB": "2",
    "QWENPROXY_REQUEST_TIMEOUT_S": "3",
    "QWENPROXY_CONNECT_TIMEOUT_S": "2",
    "QWENPROXY_UPSTREAM_IDLE_TIMEOUT_S": "3",
    "QWENPROXY_TURN_TIMEOUT_S": "15",
    "QWENPROXY_UPSTREAM_RETRIES": "1",
    "QWENPROXY_ACCOUNT_WAIT_S": "5",
    "QWENPROXY_SEND_TIMEOUT_S": "10",
}
_OWN_MODELS = {"openai": "qwen3-8b", "dashscope": "qwen-plus", "web": "qwen3-max"}
# Of the admin: what would sign out who asks.
_NOT_ASKED = ("/logout/", "/password_change/", "/password/")
_HISTORY = ["app", "status", "run", "cursor", "limit"]
_RECORD = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", re.MULTILINE)
_BAD = ("ERROR", "CRITICAL", "Traceback")
_SETTLED_S = 30.0
_RUNNING = (
    "SELECT COUNT(*) FROM requests_app_request r LEFT JOIN requests_app_response a ON a.request_id = r.id"
    " WHERE a.id IS NULL OR a.status IN ('in_progress', 'queued')"
)


class _Page(HTMLParser):
    """The fields of a page's forms and the parameters of its links."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, str] = {}
        self.parameters: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: text or "" for name, text in attrs}
        if tag in ("input", "select", "textarea", "button") and given.get("name"):
            self.fields[given["name"]] = given.get("value", "")
        if tag == "a":
            with contextlib.suppress(ValueError):
                self.parameters |= {
                    name for name, _ in parse_qsl(urlsplit(given.get("href", "")).query)
                }


class Rig:
    """`known` is what cases are made with; `gateway` runs until the block of `running` ends."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.known = Known()

    def rss_mb(self) -> float:
        assert self.gateway.process is not None
        status = Path(f"/proc/{self.gateway.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        return int(found[1]) / 1024 if found else 0.0

    def resume(self, client: httpx.Client) -> None:
        """Let every account be asked again: hostile answers have them wait."""
        for account in self.known.ids["own accounts"]:
            client.post(f"/v1/accounts/{account}/resume").raise_for_status()

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.gateway.url,
            headers={"Authorization": f"Bearer {self.known.key}"},
            verify=NO_TLS,
            timeout=60,
        )

    def learn(self) -> None:
        known = self.known
        known.key = self.gateway.key
        with self.client() as client:
            made = client.post(
                "/v1/keys", json={"name": "chat", "scopes": ["chat"]}
            ).raise_for_status()
            known.chat_key = next(
                text
                for text in made.json().values()
                if isinstance(text, str) and text.startswith("qp-") and len(text) > 20
            )
            accounts = client.get("/v1/accounts").raise_for_status().json()["data"]
            known.ids["own accounts"] = [str(account["id"]) for account in accounts]
            listed = {
                model["id"] for model in client.get("/v1/models").raise_for_status().json()["data"]
            }
            missing = set(_OWN_MODELS.values()) - listed
            assert not missing, f"no upstream serves {missing}: {sorted(listed)}"
            known.models = dict(_OWN_MODELS)
            self._make_targets(client)
            self._read_schema(client.get("/v1/openapi.json").raise_for_status().json())
            # Not in the document: the schema's own routes.
            self.known.operations += [
                ("GET", f"/api/schema/{page}", _HISTORY) for page in ("status", "plan", "history")
            ]
        self._learn_admin()

    def _make_targets(self, client: httpx.Client) -> None:
        """What cases may change and remove."""
        ids = self.known.ids
        ids["key_id"] = [
            str(client.post("/v1/keys", json={"name": f"t{i}"}).raise_for_status().json()["id"])
            for i in range(3)
        ]
        ids["account_id"] = []
        for i in range(3):
            account = {
                "name": f"t{i}",
                "kind": "openai_compatible",
                "base_url": "http://127.0.0.1:9/v1",
                "enabled": False,
            }
            ids["account_id"].append(
                str(client.post("/v1/accounts", json=account).raise_for_status().json()["id"])
            )
        turns = []
        for i in range(6):
            body: dict[str, Any] = {"model": _OWN_MODELS["openai"]}
            if i % 2:
                turns.append(
                    client.post(bodies.PATHS["responses"], json={**body, "input": f"Hello {i}"})
                )
            else:
                body["messages"] = [{"role": "user", "content": f"Hello {i}"}]
                turns.append(client.post(bodies.PATHS["chat"], json=body))
        for turn in turns:
            turn.raise_for_status()
        ids["session_id"] = [turn.headers["x-session-id"] for turn in turns]
        ids["reference"] = [turn.headers["x-request-id"] for turn in turns]
        ids["reference"] += [str(turn.json()["id"]) for turn in turns]
        ids["response_id"] = [str(turn.json()["id"]) for turn in turns]
        ids["model_id"] = list(_OWN_MODELS.values())
        ids["request_id"] = ids["reference"]
        rows = [str(n) for n in range(1, 7)]
        ids["object_id"] = ids["session_id"] + ids["reference"] + rows
        ids["message_id"] = ids["id"] = rows

    def _read_schema(self, document: dict[str, Any]) -> None:
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                names = [p["name"] for p in operation.get("parameters", []) if p["in"] == "query"]
                if path not in bodies.PATHS.values():
                    self.known.operations.append((method.upper(), path, names))

    def _learn_admin(self) -> None:
        with httpx.Client(base_url=self.gateway.url, verify=NO_TLS, timeout=60) as client:
            client.get("/admin/login/").raise_for_status()
            fields = {
                "username": "admin",
                "password": _SETTINGS["QWENPROXY_ADMIN_PASSWORD"],
                "next": "/admin/",
            }
            fields["csrfmiddlewaretoken"] = client.cookies["csrftoken"]
            signed = client.post("/admin/login/", data=fields)
            assert signed.status_code == 302, signed.text[:500]
            self.known.csrf = client.cookies["csrftoken"]
            self.known.cookies = "; ".join(
                f"{name}={text}" for name, text in client.cookies.items()
            )
            self._learn_pages(client)
            self._learn_forms(client)

    def _learn_pages(self, client: httpx.Client) -> None:
        for template in admin_paths():
            names: set[str] = set()
            if "{" not in template:
                page = _Page()
                page.feed(client.get(template, follow_redirects=True).text)
                names = page.parameters | {n for n in page.fields if n != "csrfmiddlewaretoken"}
            self.known.pages.append((template, sorted(names)))

    def _learn_forms(self, client: httpx.Client) -> None:
        key, account = self.known.ids["key_id"][0], self.known.ids["account_id"][0]
        session = self.known.ids["session_id"][0]
        paths = [
            f"/admin/{model}/add/"
            for model in ("access/apikey", "access/upstreamaccount", "auth/user", "auth/group")
        ]
        paths += [f"/admin/access/apikey/{key}/{page}/" for page in ("change", "rotate", "revoke")]
        paths += [
            f"/admin/access/upstreamaccount/{account}/{page}/"
            for page in ("change", "pause", "resume")
        ]
        paths += [
            f"/admin/sessions_app/session/{session}/change/",
            "/admin/login/",
            "/admin/playground/",
        ]
        paths += [
            "/admin/playground/key/",
            "/admin/test-accounts/",
            "/admin/schema/migrationevent/",
        ]
        for path in paths:
            page = _Page()
            page.feed(client.get(path).text)
            page.fields.pop("csrfmiddlewaretoken", None)
            self.known.forms.append((path, page.fields))
        for model in ("sessions_app/session", "requests_app/request", "requests_app/response"):
            for action in ("delete_selected", "pin", "export", "x"):
                fields = {
                    "action": action,
                    "_selected_action": session,
                    "index": "0",
                    "select_across": "0",
                    "post": "yes",
                }
                self.known.forms.append((f"/admin/{model}/", fields))

    def at_the_end(self) -> list[str]:
        """What is wrong with the record, after everything: rows without an end, differences."""
        deadline = time.monotonic() + _SETTLED_S
        while (running := self._running()) and time.monotonic() < deadline:
            time.sleep(0.2)
        found = [f"{running} responses have no end state"] if running else []
        verified = self.gateway.manage("verifyrecords")
        if verified.returncode:
            found.append(f"verifyrecords: {verified.stdout[-1000:]} {verified.stderr[-1000:]}")
        log = self.gateway.log.read_text("utf-8", "replace")
        # Django explains its refusals by tracebacks as well: as warnings, or under a name of their own.
        errors = [
            record
            for record in _RECORD.split(log)
            if "Traceback" in record
            and record.startswith(_BAD)
            and not record.startswith("ERROR django.security.")
        ]
        kinds = {record.strip().rpartition("\n")[2][:100]: record for record in errors}
        found += [
            f"logged, {len(errors)} in all: {record[:300]} ... {record[-900:]}"
            for record in kinds.values()
        ]
        return found

    def _running(self) -> int:
        [[running]] = read_rows(self.gateway.database_url, _RUNNING)
        return int(running)


def admin_paths() -> list[str]:
    """Every path of the admin's resolver as a template, `{name}` for what varies."""
    from django.urls import URLResolver, get_resolver  # the command sets up Django first

    def walk(resolver: Any, before: str) -> Iterator[str]:
        for pattern in resolver.url_patterns:
            path = before + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                yield from walk(pattern, path)
            else:
                yield "/" + path

    found = []
    for path in walk(get_resolver(), ""):
        if path.startswith("/admin") and not any(part in path for part in _NOT_ASKED):
            template = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path)
            found.append(re.sub(r"\^?\(\?P\{(\w+)\}.*", r"{\1}/", template))
    return found


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Rig]:
    """A rig on SQLite, or on the PostgreSQL of QWENPROXY_TEST_DATABASE_URL."""
    web, dashscope = HostileWeb(), HostileOpenAI(models=(_OWN_MODELS["dashscope"],))
    with (
        serve_in_thread(HostileOpenAI(models=(_OWN_MODELS["openai"],))) as url,
        serve_in_thread(dashscope) as dashscope_url,
        serve_in_thread(web) as web_url,
        new_database("postgresql" if SERVER else "sqlite") as database_url,
    ):
        settings = _SETTINGS | {
            "DASHSCOPE_API_KEY": "sk-planted",
            "DASHSCOPE_BASE_URL": f"{dashscope_url}/v1",
            "QWEN_COOKIES": "token=planted; ssxmod_itna=planted",
            "QWEN_BASE_URL": web_url,
        }
        gateway = Gateway(
            directory / "data", upstream_url=url, database_url=database_url, settings=settings
        )
        try:
            asyncio.run(gateway.start())
            rig = Rig(gateway)
            rig.learn()
            yield rig
        finally:
            gateway.close()
