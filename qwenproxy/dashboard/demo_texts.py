"""What the people and programs of the demo database say: patterns that `demo_talks` fills in."""

from __future__ import annotations

from typing import Final

from qwenproxy.wire.json import JSONObject


def _tool(name: str, about: str, **properties: str) -> JSONObject:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in properties.items()},
                "required": list(properties),
            },
        },
    }


CODE_TOOLS: Final[list[JSONObject]] = [
    _tool("read_file", "Read a file of the repository.", path="string"),
    _tool("grep", "Search the repository for a pattern.", pattern="string", path="string"),
    _tool("run_command", "Run a command and return its output.", command="string"),
    _tool("edit_file", "Replace text in a file.", path="string", old="string", new="string"),
]
SEARCH_TOOLS: Final[list[JSONObject]] = [
    _tool("search", "Search the company's reports.", query="string"),
    _tool("query_table", "Run a read-only SQL query.", sql="string"),
]
CODE_SYSTEM: Final = (
    "You are a coding agent that works in the user's repository. Read before you change, make the smallest"
    " change that solves the task, run the tests after it, and say what you did in a few sentences.\n\n"
    "Working directory: /srv/checkout\nPlatform: linux\nShell: bash"
)
SUPPORT_SYSTEM: Final = (
    "You answer customers of a web shop. Be friendly and brief. Never promise a refund; offer to open a"
    " ticket. Answer in the customer's language."
)
ANALYST_SYSTEM: Final = "You are an analyst. Think before you answer, look figures up with the tools, and name your sources."
MODULES: Final = ("billing", "invoices", "sessions", "search", "webhooks", "uploads", "accounts")
FAULTS: Final = (
    "TypeError: unsupported operand type(s) for -: 'datetime.datetime' and 'NoneType'",
    "KeyError: 'currency'",
    "AssertionError: 3 queries were expected, 41 were made",
    "TimeoutError: the lock was not released within 5 s",
    "UnicodeDecodeError: 'utf-8' codec can't decode byte 0x92 in position 118",
)
CODE_ASKED: Final = (
    "test_{module}_{number} fails on main with `{fault}`. Find out why and fix it.",
    "Add a --dry-run option to the {module} import ({number} lines or so), with a test.",
    "The {module} page became slow since #{number}. Where does the time go?",
    "Rename the field `state` of {module} to `status`, with a migration. Ticket {number}.",
)
CODE_THOUGHTS: Final = (
    "The failure is in {module}. I should look at the code before I guess; the test names the function.",
    "Two places write this value. If the second runs first, the first sees nothing. Let me look for callers.",
    "The tests passed before the change of {module}. What else did it touch? I will read the diff.",
)
CODE_DONE: Final = (
    "Fixed. `{module}/service.py` subtracted the end of an invoice that is still open, which is `None`. Open"
    " ones are now measured up to the present moment.\n\n- changed: `{module}/service.py` (4 lines)\n- added:"
    " `test_{module}_open_period`\n\nAll {number} tests pass.",
    "The time goes into one query per row: the template asks for `{module}.owner`. With `select_related`"
    " the page needs 3 queries instead of {number}, and 38 ms instead of 1.9 s.\n\n```python\nqueryset ="
    ' queryset.select_related("owner")\n```',
    "Done. The migration renames the column in place; reading the old name still works for one release. I ran"
    " {number} tests, none failed.",
)
CODE_FOLLOWED: Final = (
    "Good. Please write the entry for the changelog.",
    "Does the same mistake exist elsewhere?",
    "Add a comment that says why, then commit.",
    "Can you make the test faster? It takes {number} ms.",
)
CODE_LINES: Final = (
    "def period(self) -> timedelta:",
    "    return self.ended_at - self.started_at",
    "class {module}Service:",
    "    # Kept apart: the two are written by different processes.",
    "    rows = self.repository.find(owner=owner, limit={number})",
    "FAILED tests/test_{module}.py::test_{module}_{number} - {fault}",
    "tests/test_{module}.py ............................ [ 61%]",
    "{module}/service.py:{number}: raise InvalidState(self.status)",
    "=================== 1 failed, {number} passed in 4.31s ===================",
)
SUPPORT_ASKED: Final = (
    "Hi, my order {number} has not arrived yet. Where is it?",
    "I was charged twice for order {number}. Please help!",
    "How do I change the address of order {number}?",
    "你好，我的订单 {number} 什么时候发货？",
    "订单 {number} 收到的颜色不对，可以换吗？",
    "Bonjour, puis-je encore annuler la commande {number} ?",
    "Kann ich die Rechnung zu Bestellung {number} noch einmal bekommen?",
)
SUPPORT_ANSWERED: Final = (
    "Thanks for asking! Order {number} left our warehouse yesterday and should be with you within two days. You"
    " can follow it under *My orders*.",
    "I am sorry about that. I have opened ticket T-{number} for you; a colleague looks at it today.",
    "您好！订单 {number} 已经出库，预计两天内送达。如需更改地址，请在“我的订单”里点击“修改”。",
    "Bien sûr. La commande {number} n'est pas encore partie : je peux ouvrir une demande d'annulation.",
    "Of course. Open *My orders*, choose {number}, then *Change address*. This works until it is packed.",
)
SUPPORT_FOLLOWED: Final = (
    "Thank you! And can I add something to it?",
    "That did not help. Can I talk to somebody?",
    "好的，谢谢！",
    "Which carrier is it? I need number {number}.",
)
ANALYST_ASKED: Final = (
    "How did revenue of region {number} develop over the last four quarters, and why?",
    "Compare churn of cohort {number} with the one before. Is the difference significant?",
    "Which of our {number} suppliers are late most often?",
)
ANALYST_THOUGHTS: Final = (
    "I need the quarterly figures first. The table `revenue` has region and quarter. Then I compare each quarter"
    " with the one a year before, because there is a season in it. A change below three percent is noise here:"
    " the standard deviation over {number} weeks is about that large.",
    "The cohorts differ in size, so I have to compare shares, not counts. With n = {number} the interval is about"
    " two points wide. If the difference is smaller than that I must not call it significant.",
)
ANALYST_QUERIES: Final = (
    "SELECT quarter, SUM(amount) FROM revenue WHERE region = {number} GROUP BY quarter",
    "SELECT supplier, AVG(days_late) FROM deliveries WHERE supplier < {number} GROUP BY supplier",
)
ANALYST_ANSWERED: Final = (
    "Revenue of region {number} rose in three of four quarters.\n\n| quarter | revenue | change |\n|---|---:|---:|\n"
    "| Q1 | 4.1 M | +2.0 % |\n| Q2 | 4.4 M | +7.3 % |\n| Q3 | 4.2 M | −4.5 % |\n| Q4 | 4.9 M | +16.7 % |\n\n"
    "The fall in Q3 is the lost contract in the north; without it the quarter would have been level.",
    "The difference is 1.4 points (12.9 % against 11.5 %). With {number} customers its 95 % interval reaches from"
    " −0.6 to 3.4 points: not significant.",
)
BATCH_ASKED: Final = (
    "Translate to English, return JSON with the key `text`: 第{number}批货物已于昨日到港，请安排清关。",
    "Classify the mood of this review as good, bad or mixed: “Nice shoes, but {number} days for delivery?”",
    "Extract name, date and sum as JSON: Invoice {number} of 2026-10-04, Lindqvist & Co, 1,204.50 EUR",
)
BATCH_ANSWERED: Final = (
    '{{"text": "Lot {number} arrived in port yesterday; please arrange customs clearance."}}',
    '{{"mood": "mixed"}}',
    '{{"name": "Lindqvist & Co", "date": "2026-10-04", "sum": 1204.50, "invoice": "{number}"}}',
)
