"""The counts of limited keys (`KeyUsage`), read and written in the recorder's transactions.

One transaction decides and counts: on SQLite writers come one after another, on PostgreSQL the rows of the
limited keys are locked first, so that two processes never give out the same last unit. Keys without limits
are not counted and cost no statement. Besides minutes, days and months there is the span `live`: per key
and process the turns that run and the tokens that they hold. It is written whole, never added to, and goes
with its process, so that no crash blocks a key.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenproxy.access.models import KeyUsage
from qwenproxy.transaction import Transaction
from requests_app.limits import Asked, Moment, Refusal, Standing, Used, exceeded, refuse, standing

if TYPE_CHECKING:
    from requests_app.writes import Closing, Opening

_TABLE = KeyUsage._meta.db_table
# SQLite's older builds take 999 parameters; each key stands in a statement four times.
_KEYS_PER_QUERY = 200
_KEPT_MINUTE_SLOTS = 2 * 60 * 4
_KEPT_DAYS = 62
_KEPT_MONTHS = 13
_LARGEST_COUNT = 2**31 - 1

_LOCK = "SELECT 1 FROM access_apikey WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE"
_SUMS = " UNION ALL ".join(
    f"SELECT api_key_id, span, SUM(requests), SUM(tokens), MAX(slot) FROM {_TABLE} "  # noqa: S608  # constants
    f"WHERE api_key_id IN ({{keys}}) AND span = '{span}' AND slot {test} %s GROUP BY api_key_id, span"
    for span, test in (("minute", ">="), ("day", "="), ("month", "="), ("live", "<>"))
)
_MINUTE = (
    f"SELECT slot, requests, tokens FROM {_TABLE} "  # noqa: S608  # constants
    "WHERE api_key_id = %s AND span = 'minute' AND slot >= %s ORDER BY slot"
)
_INSERT = (
    f"INSERT INTO {_TABLE} (api_key_id, span, slot, requests, tokens) VALUES (%s, %s, %s, %s, %s) "  # noqa: S608  # constants
    "ON CONFLICT (api_key_id, span, slot) DO UPDATE SET "
)
_ADD = (
    f"{_INSERT} requests = {_TABLE}.requests + excluded.requests,"
    f" tokens = {_TABLE}.tokens + excluded.tokens"
)
_PUT = f"{_INSERT} requests = excluded.requests, tokens = excluded.tokens"
_CORRECT = (
    f"UPDATE {_TABLE} SET tokens = CASE WHEN tokens + %s < 0 THEN 0 ELSE tokens + %s END "  # noqa: S608  # constants
    "WHERE api_key_id = %s AND span = %s AND slot = %s"
)
_ENDED = (
    "SELECT response_id FROM requests_app_response WHERE status <> 'in_progress' AND response_id IN"
)


@dataclass(frozen=True, slots=True)
class _Charge:
    """What a running turn took when it began, and in which slots."""

    key_id: int
    tokens: int
    moment: Moment
    # Whether the key has a limit that counts minutes.
    has_minute: bool


class Ledger:
    """Counts the turns of one process; used by the recorder's thread alone.

    A batch is `begin`, `close`, `admit`, `finish` in one transaction, then `committed`. A transaction that
    failed is begun again; until `committed` nothing of it is remembered.
    """

    def __init__(self, worker_id: str) -> None:
        self._slot = _slot_of(worker_id)
        # By response_id.
        self._running: dict[str, _Charge] = {}
        # Key -> turns that run, tokens that they hold.
        self._held: dict[int, tuple[int, int]] = {}
        # What the transaction changes of both.
        self._opened: dict[str, _Charge] = {}
        self._closed: list[str] = []
        self._changes: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
        self._moment = Moment.at(0)
        self._decided_s = 0.0

    def begin(
        self, tx: Transaction, openings: Iterable[Opening], closings: Iterable[Closing]
    ) -> None:
        """Lock the keys of a batch, before anything else of it is locked, and read the clock."""
        self._opened, self._closed = {}, []
        self._changes.clear()
        running = self._running
        keys = {turn.api_key_id for turn in openings if turn.limits is not None}
        keys |= {running[t.response_id].key_id for t in closings if t.response_id in running}
        if not keys:
            return
        if tx.vendor == "postgresql":
            tx.execute(_LOCK, [sorted(keys)])
        self._decided_s = time.monotonic()
        self._moment = _now(tx)

    def close(self, tx: Transaction, closings: Iterable[Closing]) -> None:
        """Put true counts in the place of what ended turns had reserved; before the ends are written."""
        ends = {turn.response_id: turn for turn in closings if turn.response_id in self._running}
        if not ends:
            return
        # An end whose COMMIT was not answered is written again; its tokens are not.
        tx.execute(f"{_ENDED} ({_marks(ends)})", list(ends))
        written = {response_id for (response_id,) in tx.fetchall()}
        corrections: defaultdict[_Place, int] = defaultdict(int)
        for response_id, turn in ends.items():
            charge = self._running[response_id]
            self._closed.append(response_id)
            self._change(charge.key_id, -1, -charge.tokens)
            if response_id in written:
                continue
            for place in _places(charge):
                if place[1] != "minute" or place[2] >= self._moment.oldest:
                    corrections[place] += min(turn.total_tokens, _LARGEST_COUNT) - charge.tokens
        _correct(tx, corrections)

    def admit(
        self, tx: Transaction, openings: Sequence[Opening]
    ) -> list[Standing | Refusal | None]:
        """Decide in their order which turns may begin, and count those; null: the key has no limits."""
        limited = sorted({turn.api_key_id for turn in openings if turn.limits is not None})
        used = self._read(tx, limited) if limited else {}
        minutes: dict[int, list[tuple[int, int, int]]] = {}
        outcomes: list[Standing | Refusal | None] = []
        for turn in openings:
            limits, key_id = turn.limits, turn.api_key_id
            if limits is None:
                outcomes.append(None)
            elif reason := exceeded(limits, used[key_id], turn.reserved_tokens):
                if key_id not in minutes:
                    minutes[key_id] = self._read_minute(tx, key_id)
                ask = Asked(reason, limits, turn.reserved_tokens, self._decided_s)
                outcomes.append(refuse(ask, used[key_id], self._moment, minutes[key_id]))
            else:
                self._take(turn)
                used[key_id].take(turn.reserved_tokens, self._moment)
                outcomes.append(standing(limits, used[key_id], self._moment))
        self._count(tx)
        return outcomes

    def finish(self, tx: Transaction) -> None:
        """Write what this process runs, of the keys for which it changed."""
        if self._changes:
            rows = [(key, "live", self._slot, *self._own(key)) for key in sorted(self._changes)]
            tx.executemany(_PUT, rows)

    def committed(self) -> None:
        for response_id in self._closed:
            del self._running[response_id]
        self._running.update(self._opened)
        for key_id in self._changes:
            self._held[key_id] = self._own(key_id)
            if self._held[key_id] == (0, 0):
                del self._held[key_id]
        self._opened, self._closed = {}, []
        self._changes.clear()

    def _change(self, key_id: int, turns: int, tokens: int) -> None:
        change = self._changes[key_id]
        change[0] += turns
        change[1] += tokens

    def _own(self, key_id: int) -> tuple[int, int]:
        turns, tokens = self._held.get(key_id, (0, 0))
        more_turns, more_tokens = self._changes.get(key_id, (0, 0))
        return turns + more_turns, tokens + more_tokens

    def _take(self, turn: Opening) -> None:
        assert turn.limits is not None
        limits = turn.limits
        has_minute = (limits.requests_per_minute, limits.tokens_per_minute) != (None, None)
        charge = _Charge(turn.api_key_id, turn.reserved_tokens, self._moment, has_minute)
        self._opened[turn.response_id] = charge
        self._change(charge.key_id, 1, charge.tokens)

    def _count(self, tx: Transaction) -> None:
        counts: defaultdict[_Place, list[int]] = defaultdict(lambda: [0, 0])
        for charge in self._opened.values():
            for place in _places(charge):
                counts[place][0] += 1
                counts[place][1] += charge.tokens
        if counts:
            tx.executemany(_ADD, [(*place, *count) for place, count in sorted(counts.items())])

    def _read(self, tx: Transaction, keys: Sequence[int]) -> dict[int, Used]:
        moment = self._moment
        found = {key_id: Used() for key_id in keys}
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            some = keys[start : start + _KEYS_PER_QUERY]
            slots = (moment.oldest, moment.day, moment.month, self._slot)
            params = [param for slot in slots for param in (*some, slot)]
            tx.execute(_SUMS.format(keys=_marks(some)), params)
            for key_id, span, requests, tokens, newest in tx.fetchall():
                found[key_id].add(span, int(requests), int(tokens), newest)
        for key_id, used in found.items():
            used.add("live", *self._own(key_id), None)
            if used.newest is not None and used.newest > moment.minute:
                _bring_back(tx, key_id, moment)
                used.newest = moment.minute
        return found

    def _read_minute(self, tx: Transaction, key_id: int) -> list[tuple[int, int, int]]:
        """(slot, requests, tokens) of the last minute, with what this batch has let in."""
        tx.execute(_MINUTE, [key_id, self._moment.oldest])
        taken = [c.tokens for c in self._opened.values() if c.key_id == key_id]
        return [*tx.fetchall(), (self._moment.minute, len(taken), sum(taken))]


# (key, span, slot).
_Place = tuple[int, str, int]


def _places(charge: _Charge) -> Iterator[_Place]:
    moment = charge.moment
    if charge.has_minute:
        yield charge.key_id, "minute", moment.minute
    yield charge.key_id, "day", moment.day
    yield charge.key_id, "month", moment.month


def _correct(tx: Transaction, corrections: Mapping[_Place, int]) -> None:
    rows = [(n, n, *place) for place, n in sorted(corrections.items()) if n]
    if rows:
        tx.executemany(_CORRECT, rows)


def _bring_back(tx: Transaction, key_id: int, moment: Moment) -> None:
    """The clock was set back: what was counted after `moment` counts from now on, for a minute."""
    where = f"FROM {_TABLE} WHERE api_key_id = %s AND span = 'minute' AND slot > %s"
    tx.execute(f"SELECT SUM(requests), SUM(tokens) {where}", [key_id, moment.minute])
    requests, tokens = tx.fetchone()
    tx.execute(f"DELETE {where}", [key_id, moment.minute])
    tx.execute(_ADD, [key_id, "minute", moment.minute, int(requests), int(tokens)])


def _now(tx: Transaction) -> Moment:
    """One clock for all processes: with PostgreSQL its own, as they may be on several machines."""
    if tx.vendor != "postgresql":
        return Moment.at(time.time())
    tx.execute("SELECT extract(epoch FROM clock_timestamp())")
    (seconds,) = tx.fetchone()
    return Moment.at(float(seconds))


def _marks(values: Collection[object]) -> str:
    return ", ".join(["%s"] * len(values))


def _slot_of(worker_id: str) -> int:
    digest = hashlib.blake2b(worker_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def count_interrupted(tx: Transaction, turns: Iterable[tuple[int, int]]) -> None:
    """Count what turns of a dead process used for certain: (key, tokens); only counted keys have rows."""
    sums: defaultdict[int, int] = defaultdict(int)
    for key_id, tokens in turns:
        sums[key_id] += tokens
    if any(sums.values()):
        moment = _now(tx)
        _correct(tx, {place: n for key, n in sums.items() for place in _budgets(key, moment)})


def forget_worker(tx: Transaction, worker_id: str) -> None:
    """Free what a process that ended ran, and give back what it held of its keys' budgets.

    What it held of the minute passes with the minute.
    """
    where = f"FROM {_TABLE} WHERE span = 'live' AND slot = %s"
    tx.execute(f"SELECT api_key_id, tokens {where}", [_slot_of(worker_id)])
    held = [(key_id, tokens) for key_id, tokens in tx.fetchall() if tokens]
    if held:
        moment = _now(tx)
        _correct(tx, {place: -n for key, n in held for place in _budgets(key, moment)})
    tx.execute(f"DELETE {where}", [_slot_of(worker_id)])


def _budgets(key_id: int, moment: Moment) -> tuple[_Place, _Place]:
    return (key_id, "day", moment.day), (key_id, "month", moment.month)


def prune(tx: Transaction) -> None:
    """Delete counts that no limit looks at any more."""
    moment = _now(tx)
    for span, oldest in (
        ("minute", moment.minute - _KEPT_MINUTE_SLOTS),
        ("day", moment.day - _KEPT_DAYS),
        ("month", moment.month - _KEPT_MONTHS),
    ):
        tx.execute(f"DELETE FROM {_TABLE} WHERE span = %s AND slot < %s", [span, oldest])  # noqa: S608  # constants
