"""Made-up conversations of the demo database: who says what, when, and what goes wrong.

Pure: the same chance gives the same conversations. What a client sends and a model answers is made here;
`demo_data` writes it as the recorder would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Final, Literal

from qwenproxy.dashboard import demo_texts as texts
from qwenproxy.wire import json
from qwenproxy.wire.events import Accumulator, Finished, ReasoningDelta, TextDelta, ToolCallDelta
from qwenproxy.wire.json import JSONObject

Kind = Literal["code", "support", "analyst", "batch", "payroll"]
# What becomes of a turn: an answer, the name of an error in `demo_data`, or an end of another kind.
Outcome = Literal["answer", "error", "left", "stopped"]
# Share of turns that fail, and the same while an account is out for some time.
_FAILING, _FAILING_IN_INCIDENT = 0.012, 0.3
# To find a time that fits.
_TRIES = 200
# By hour of the day: people work by day, batches run at night.
_DAY: Final = (1, 1, 1, 1, 1, 2, 5, 12, 28, 44, 52, 50, 38, 46, 54, 55, 48, 38, 24, 14, 9, 6, 4, 2)
_NIGHT: Final = (30, 52, 40, 12, 2, *[0] * 17, 2, 8)


@dataclass(frozen=True, slots=True)
class Client:
    """A program that calls the gateway, with its key."""

    kind: Kind
    key: str
    user_agent: str
    models: Sequence[str]
    # Of all conversations.
    share: float
    hours: Sequence[int] = _DAY
    stream: bool = True
    limits: dict[str, int] = field(default_factory=dict)
    recorded: str = "everything"


CLIENTS: Final = (
    Client("code", "coding agents", "qwen-code/0.4.1 (linux; x64)", ("qwen3-coder-plus", "qwen3-coder-plus", "qwen3-max"), 0.22, limits={"tokens_per_day": 60_000_000, "max_concurrent": 20}),
    Client("support", "support desk", "support-desk/2.3 python-httpx/0.28.1", ("qwen-plus", "qwen3-max"), 0.38, limits={"requests_per_minute": 120}),
    Client("analyst", "analysts", "OpenAI/Python 3.54.0", ("qwen3-235b-a22b-thinking",), 0.1, limits={"tokens_per_month": 40_000_000}),
    Client("batch", "nightly batch", "OpenAI/JS 6.2.0", ("qwen-flash",), 0.24, _NIGHT, stream=False),
    Client("payroll", "payroll (nothing kept)", "curl/8.14.1", ("qwen-plus",), 0.06, stream=False, recorded="metadata"),
)  # fmt: skip


@dataclass(slots=True)
class Turn:
    """One call: everything that its client sent, and what came of it."""

    client: Client
    at: datetime
    model: str
    system: str
    tools: list[JSONObject]
    line: list[JSONObject]
    answer: Accumulator
    outcome: Outcome = "answer"
    ttft_ms: int = 0
    duration_ms: int = 0
    # One of another account failed before.
    is_second_try: bool = False

    @property
    def ended_at(self) -> datetime:
        return self.at + timedelta(milliseconds=self.duration_ms)


@dataclass(slots=True)
class Plan:
    """The stretch of time that is filled."""

    start: datetime
    end: datetime

    def in_incident(self, at: datetime) -> bool:
        """Some time before now an account was out for most of an hour."""
        began = self.end - (self.end - self.start) * 0.19
        return began <= at < began + timedelta(minutes=50)


class Talk:
    """A conversation as it is made: what was said so far, and the turns that it took."""

    def __init__(self, client: Client, at: datetime, plan: Plan, chance: Random) -> None:
        self.client, self.at, self.plan, self.chance = client, at, plan, chance
        self.model = chance.choice(client.models)
        self.system = ""
        self.tools: list[JSONObject] = []
        self.line: list[JSONObject] = []
        self.turns: list[Turn] = []
        self.module = chance.choice(texts.MODULES)
        # Of the ids of its calls: no two conversations may begin alike.
        self._label = f"{chance.getrandbits(48):012x}"
        self._calls = 0

    def fill(self, patterns: Sequence[str]) -> str:
        return self.chance.choice(patterns).format(
            module=self.module,
            number=self.chance.randint(12, 99_999),
            fault=self.chance.choice(texts.FAULTS),
        )

    def user(self, text: str) -> None:
        # Nobody types two prompts within a second.
        self.at += timedelta(seconds=self.chance.lognormvariate(3.4, 0.9))
        self.line = [*self.line, {"role": "user", "content": text}]

    def tool(self, text: str) -> None:
        self.at += timedelta(seconds=self.chance.lognormvariate(0.2, 0.8))
        message: JSONObject = {"role": "tool", "tool_call_id": self.last_call_id, "content": text}
        self.line = [*self.line, message]

    @property
    def last_call_id(self) -> str:
        return f"call_{self._label}{self._calls:03d}"

    def answered(
        self, text: str = "", *, reasoning: str = "", call: JSONObject | None = None
    ) -> None:
        """The client sends the line; a call that fails is sent again after a while."""
        answer = Accumulator()
        if reasoning:
            answer.add(ReasoningDelta(reasoning))
        if text:
            answer.add(TextDelta(text))
        if call is not None:
            self._calls += 1
            name, arguments = str(call["name"]), json.dumps_text(call["arguments"])
            answer.add(ToolCallDelta(0, self.last_call_id, name, arguments))
        answer.add(Finished("stop" if call is None else "tool_calls"))
        is_incident = self.plan.in_incident(self.at)
        failing = _FAILING_IN_INCIDENT if is_incident else _FAILING
        while self.chance.random() < failing:
            failed = self._turn(Accumulator(), "error")
            failed.duration_ms = round(self.chance.lognormvariate(6.5, 0.9)) + 20
            self.at = failed.ended_at + timedelta(seconds=self.chance.uniform(1, 20))
        turn = self._turn(answer, "answer")
        turn.is_second_try = self.chance.random() < failing
        self._time(turn)
        if self.chance.random() < 0.004:
            self._cut(turn)
        self.at = turn.ended_at
        self.line = [*self.line, turn.answer.message()]

    def _turn(self, answer: Accumulator, outcome: Outcome) -> Turn:
        turn = Turn(
            self.client, self.at, self.model, self.system, self.tools, self.line, answer, outcome
        )
        self.turns.append(turn)
        return turn

    def _time(self, turn: Turn) -> None:
        """A slower model begins later and writes slower; long prompts take time as well."""
        base = {"qwen-flash": 5.4, "qwen-plus": 5.9, "qwen3-235b-a22b-thinking": 6.7}.get(
            self.model, 6.2
        )
        waited = 2000 if turn.is_second_try else 0
        turn.ttft_ms = round(self.chance.lognormvariate(base, 0.45)) + 8 * len(turn.line) + waited
        calls = sum(len(call.arguments) for call in turn.answer.tool_calls.values())
        chars = len(turn.answer.text) + len(turn.answer.reasoning) + calls
        turn.duration_ms = turn.ttft_ms + round(chars / self.chance.uniform(0.16, 0.4)) + 15

    def _cut(self, turn: Turn) -> None:
        """The client left, or the gateway was stopped, before the answer's end."""
        text = turn.answer.text
        turn.answer = Accumulator()
        turn.answer.add(TextDelta(text[: max(len(text) // 3, 1)] or "I "))
        turn.duration_ms = turn.ttft_ms + (turn.duration_ms - turn.ttft_ms) // 3
        turn.outcome = self.chance.choice(("left", "left", "stopped"))

    def back_to_user(self) -> bool:
        """Go back above the last thing that a user said, as after an edit; false where it is the first."""
        users = [index for index, message in enumerate(self.line) if message["role"] == "user"]
        if len(users) < 2:
            return False
        self.line = self.line[: users[-1]]
        return True


def make_code(talk: Talk) -> None:
    talk.system, talk.tools = texts.CODE_SYSTEM, texts.CODE_TOOLS
    talk.user(talk.fill(texts.CODE_ASKED))
    for round_number in range(talk.chance.choice((1, 1, 2, 3))):
        if round_number:
            talk.user(talk.fill(texts.CODE_FOLLOWED))
        for _ in range(talk.chance.randint(2, 9)):
            _work(talk)
        talk.answered(talk.fill(texts.CODE_DONE))
    if talk.chance.random() < 0.18 and talk.back_to_user():
        talk.user(talk.fill(texts.CODE_FOLLOWED))
        talk.answered(talk.fill(texts.CODE_DONE))


def _work(talk: Talk) -> None:
    thought = talk.fill(texts.CODE_THOUGHTS) if talk.chance.random() < 0.4 else ""
    path = f"{talk.module}/{talk.chance.choice(('service', 'models', 'views', 'queries'))}.py"
    calls: list[JSONObject] = [
        {"name": "read_file", "arguments": {"path": path}},
        {"name": "grep", "arguments": {"pattern": f"def .*{talk.module}", "path": "."}},
        {"name": "run_command", "arguments": {"command": f"pytest -q tests/test_{talk.module}.py"}},
        {"name": "edit_file", "arguments": {"path": path, "old": "ended_at", "new": "ended_at or now"}},
    ]  # fmt: skip
    talk.answered(reasoning=thought, call=talk.chance.choice(calls))
    talk.tool("\n".join(talk.fill(texts.CODE_LINES) for _ in range(talk.chance.randint(2, 40))))


def make_support(talk: Talk) -> None:
    talk.system = texts.SUPPORT_SYSTEM
    talk.user(talk.fill(texts.SUPPORT_ASKED))
    talk.answered(talk.fill(texts.SUPPORT_ANSWERED))
    for _ in range(talk.chance.choice((0, 0, 1, 1, 2, 4))):
        talk.user(talk.fill(texts.SUPPORT_FOLLOWED))
        talk.answered(talk.fill(texts.SUPPORT_ANSWERED))
    if talk.chance.random() < 0.08 and talk.back_to_user():
        talk.user(talk.fill(texts.SUPPORT_FOLLOWED))
        talk.answered(talk.fill(texts.SUPPORT_ANSWERED))


def make_analyst(talk: Talk) -> None:
    talk.system, talk.tools = texts.ANALYST_SYSTEM, texts.SEARCH_TOOLS
    talk.user(talk.fill(texts.ANALYST_ASKED))
    for _ in range(talk.chance.randint(1, 3)):
        sql = talk.fill(texts.ANALYST_QUERIES)
        call: JSONObject = {"name": "query_table", "arguments": {"sql": sql}}
        talk.answered(reasoning=talk.fill(texts.ANALYST_THOUGHTS), call=call)
        talk.tool(
            json.dumps_text([[f"Q{q}", talk.chance.randint(3, 9) * 10**5] for q in range(1, 5)])
        )
    talk.answered(talk.fill(texts.ANALYST_ANSWERED), reasoning=talk.fill(texts.ANALYST_THOUGHTS))


def make_batch(talk: Talk) -> None:
    talk.user(talk.fill(texts.BATCH_ASKED))
    talk.answered(talk.fill(texts.BATCH_ANSWERED))


_MAKERS: Final[dict[Kind, Callable[[Talk], None]]] = {
    "code": make_code,
    "support": make_support,
    "analyst": make_analyst,
    "batch": make_batch,
    "payroll": make_batch,
}

_LARGE_TURNS, _LARGE_BRANCHES = 300, 40
# Of results of tools: one is large, the others share as much.
_LARGE_BYTES = 2 * 10**6


def make_large(talk: Talk) -> None:
    """An agent's session of a whole day: 300 turns, 40 branches, and 2 MB of tools' results twice."""
    talk.system, talk.tools = texts.CODE_SYSTEM, texts.CODE_TOOLS
    talk.user("Port the whole billing service to the new ledger, one module at a time.")
    branches = 0
    for number in range(1, _LARGE_TURNS + 1):
        # Below an answer that something was said to already: only then is it another branch.
        is_due = branches < min(number * _LARGE_BRANCHES // (_LARGE_TURNS - 10), _LARGE_BRANCHES)
        if is_due and talk.line[-1]["role"] != "user" and talk.back_to_user():
            talk.user(talk.fill(texts.CODE_FOLLOWED))
            branches += 1
        if number % 5 == 0:
            talk.answered(talk.fill(texts.CODE_DONE))
            talk.user(talk.fill(texts.CODE_FOLLOWED))
            continue
        thought = talk.fill(texts.CODE_THOUGHTS) if number % 3 == 0 else ""
        call: JSONObject = {
            "name": "run_command",
            "arguments": {"command": f"pytest -q # {number}"},
        }
        talk.answered(reasoning=thought, call=call)
        size = _LARGE_BYTES if number == 13 else _LARGE_BYTES // _LARGE_TURNS
        talk.tool(_output(talk, size))


def _output(talk: Talk, size: int) -> str:
    some = "\n".join(talk.fill(texts.CODE_LINES) for _ in range(60)) + "\n"
    return (some * (size // len(some) + 1))[:size]


def make_talk(client: Client, at: datetime, plan: Plan, chance: Random) -> list[Turn]:
    """Make one conversation that begins at a time, without what would come after the plan's end."""
    talk = Talk(client, at, plan, chance)
    _MAKERS[client.kind](talk)
    return [turn for turn in talk.turns if turn.ended_at < plan.end]


def make_large_talk(plan: Plan, chance: Random) -> list[Turn]:
    """Make the large conversation, so that it ends at the plan's end."""
    talk = Talk(CLIENTS[0], plan.start, plan, chance)
    make_large(talk)
    late = plan.end - timedelta(minutes=5) - talk.turns[-1].ended_at
    for turn in talk.turns:
        turn.at += late
    return talk.turns


def make_traffic(plan: Plan, requests: int, chance: Random) -> list[Turn]:
    """Make conversations until they have so many calls, and put the calls in the order of their times."""
    turns: list[Turn] = []
    shares = [client.share for client in CLIENTS]
    while len(turns) < requests:
        (client,) = chance.choices(CLIENTS, shares)
        turns += make_talk(client, _moment(client, plan, chance), plan, chance)[
            : requests - len(turns)
        ]
    turns.sort(key=lambda turn: turn.at)
    return turns


def _moment(client: Client, plan: Plan, chance: Random) -> datetime:
    """A time at which somebody works; some always work right now, so that new figures are never empty."""
    if chance.random() < 0.02:
        return plan.end - timedelta(minutes=chance.uniform(1, 50))
    length = plan.end - plan.start
    for _ in range(_TRIES):
        at = plan.start + length * chance.random()
        weight = client.hours[at.hour] * (0.25 if at.weekday() >= 5 and client.hours is _DAY else 1)
        if chance.random() * max(client.hours) < weight:
            break
    # In a short stretch of time it may be nobody's hour.
    return at
