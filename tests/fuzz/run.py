"""Sends cases to a running gateway, and judges each answer.

Of every case: an answer in time, no status 500, errors in the API's own form with a message, bodies that
are what their type says and end properly. Afterwards: the process lives, no request is without an end,
the record verifies, no traceback was logged, the memory is bounded.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.cases import Case, area_of, make
from tests.fuzz.rig import Rig

# Turns end after 15 s by the rig's settings; the rest is for a busy machine.
ANSWER_S = 60.0
_THREADS = 4
_GATEWAY_ERRORS = (502, 503, 504, 529)
_RSS_MB = 700.0
_WITH_PARAM = ("chat", "completions", "responses", "embeddings")


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is 0 where the connection was closed without an answer."""

    status: int = 0
    kind: str = ""
    body: bytes = b""
    location: str = ""
    fault: str = ""


@dataclass
class Area:
    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: int = 0


@dataclass
class Report:
    areas: dict[str, Area] = field(default_factory=dict)
    # By index of the case; -1: what was found at the end.
    failures: list[tuple[int, str]] = field(default_factory=list)
    # Refusals of a body that name no field: for who reads the table.
    without_param: Counter[str] = field(default_factory=Counter)
    rss_mb: tuple[float, float] = (0.0, 0.0)


def send(port: int, case: Case) -> Answer:
    """One case on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        try:
            connection.sendall(case.data)
            if case.is_cut:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            # An answer may have come before the whole request was taken.
            pass
        answer = http.client.HTTPResponse(connection, method=case.method or None)
        try:
            answer.begin()
            body = answer.read()
        except TimeoutError:
            return Answer(fault=f"no answer in {ANSWER_S:.0f} s")
        except (OSError, http.client.BadStatusLine, http.client.HTTPException) as failed:
            status = getattr(answer, "status", 0)
            is_raw = case.is_cut or not isinstance(status, int)
            fault = "" if case.area == "raw" and is_raw else f"broken off: {failed!r}"
            return Answer(status=status if isinstance(status, int) else 0, fault=fault)
        finally:
            answer.close()
        head = answer.headers
        return Answer(answer.status, head.get_content_type(), body, head.get("Location", ""))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _json(data: bytes) -> Any:
    return json.loads(data.decode(), parse_constant=_no_constant)


def judge(case: Case, answer: Answer) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if answer.fault:
        return answer.fault
    if answer.status == 500 or (answer.status > 500 and answer.status not in _GATEWAY_ERRORS):
        return f"status {answer.status}: {answer.body[:200]!r}"
    if case.method == "HEAD" or answer.status == 0 or answer.status in (204, 304):
        return ""
    if case.area.startswith("admin") and "/login/?next=" in answer.location:
        return "signed out: the admin's cases test nothing"
    is_api = case.path.startswith(("/v1", "/api"))
    try:
        if answer.kind == "text/event-stream":
            return _of_stream(answer.body)
        if answer.kind == "application/json":
            document = _json(answer.body)
            if is_api and answer.status >= 400:
                return _of_error(document) or _of_param(case, answer.status, document)
        elif is_api and answer.status >= 400 and case.area != "raw":
            return f"an error as {answer.kind}: {answer.body[:200]!r}"
        else:
            answer.body.decode()
    except ValueError as failed:
        return f"the body is not what it says: {failed}"
    # A page's wrong method is Django's answer, which has none.
    if answer.status >= 400 and not answer.body and answer.status != 405:
        return f"status {answer.status} without a word"
    return ""


def _of_error(document: Any) -> str:
    error = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return f"not an error of the API's form: {str(document)[:200]}"
    if not error["message"] or not isinstance(error.get("type"), str):
        return f"an error without a message or type: {error}"
    return ""


def _of_param(case: Case, status: int, document: Any) -> str:
    """A body's fault names its field; Anthropic's form says it in the message."""
    error = document["error"]
    if case.area not in _WITH_PARAM or status != 400 or error["message"].startswith("the body "):
        return ""
    return "" if error.get("param") else f"no param: {error['message'][:200]}"


def _of_stream(body: bytes) -> str:
    for line in body.decode().split("\n"):
        if line.startswith("data:") and line[5:].strip() != "[DONE]":
            _json(line[5:].encode())
    return "" if not body or body.endswith(b"\n\n") else "a stream that ends within an event"


class Run:
    """Cases `first` to `cases` of a seed; failing ones are written to `directory`."""

    def __init__(self, rig: Rig, seed: int, directory: Path) -> None:
        self._rig = rig
        self._seed = seed
        self._directory = directory
        self._lock = threading.Lock()
        self._done = 0
        self.report = Report()

    def run(self, indexes: Iterable[int], progress: Callable[[int, int], None]) -> Report:
        before = 0.0
        with ThreadPoolExecutor(_THREADS) as pool:
            for _ in pool.map(self._one, indexes):
                self._done += 1
                if self._done == 200:
                    before = self._rig.rss_mb()
                progress(self._done, len(self.report.failures))
                if self._rig.gateway.process.poll() is not None:
                    break
        self._at_the_end(before)
        return self.report

    def _at_the_end(self, before: float) -> None:
        found = []
        if self._rig.gateway.process.poll() is not None:
            found.append(f"the process ended: {self._rig.gateway.tail()}")
        else:
            after = self._rig.rss_mb()
            self.report.rss_mb = (before, after)
            if after > _RSS_MB:
                found.append(f"the process holds {after:.0f} MB")
            with self._rig.client() as client:
                status = client.get("/v1/models").status_code
            if status != 200:
                found.append(f"the key of the cases gets {status}")
            found += self._rig.at_the_end()
        self.report.failures += [(-1, text) for text in found]

    def _one(self, index: int) -> None:
        if self._rig.gateway.process.poll() is not None:
            return
        case = make(self._seed, index, self._rig.known)
        if case.area.startswith("upstream") or index % 50 == 0:
            with self._rig.client() as client:
                self._rig.resume(client)
        began = time.monotonic()
        try:
            answer = send(self._rig.gateway.port, case)
        except OSError as failed:
            answer = Answer(fault=f"no connection: {failed!r}")
        self._note(index, case, answer, time.monotonic() - began)

    def _note(self, index: int, case: Case, answer: Answer, seconds: float) -> None:
        wrong = judge(case, answer)
        with self._lock:
            area = self.report.areas.setdefault(area_of(self._seed, index), Area())
            area.cases += 1
            area.statuses[answer.status] += 1
            if seconds > area.slowest_s:
                area.slowest_s, area.slowest = seconds, index
            self._note_param(case, answer)
            if wrong:
                self.report.failures.append(
                    (index, f"{case.area}: {case.method} {case.path[:100]}: {wrong}")
                )
                (self._directory / f"{self._seed}-{index}.request").write_bytes(case.data)
                (self._directory / f"{self._seed}-{index}.answer").write_bytes(answer.body)

    def _note_param(self, case: Case, answer: Answer) -> None:
        if answer.status != 400 or answer.kind != "application/json" or case.area == "raw":
            return
        # What is no error of the API's form is judged already; a HEAD has no body.
        try:
            error = json.loads(answer.body or b"{}").get("error")
        except ValueError:
            return
        if isinstance(error, dict) and error.get("param") is None:
            self.report.without_param[f"{case.area}: {error.get('message', '')[:110]}"] += 1
