"""`python -m benchmarks.calls`: what reading tool calls from an answer's text costs, per character.

Each answer is fed in pieces of 4 characters, about a token, and of 64, as they come when a model is
quick; the figure is the median of the rounds, in CPU time of this process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from statistics import median

from qwenproxy.wire.json import JSONValue
from qwenproxy.wire.tool_calls import ToolCallParser, ToolSpec, render_call

LIMIT_US = 2.0
_EDIT: JSONValue = {
    "type": "object",
    "properties": {"line": {"type": "integer"}, "text": {"type": "string"}},
}
_TOOL = ToolSpec(
    "write",
    "",
    {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "content": {"type": "string"},
            "edits": {"type": "array", "items": _EDIT},
        },
    },
)
_CODE = 'def f(a, b):\n    if a < b:\n        return "x"  # <b> 你好\n'


def answers() -> dict[str, str]:
    file = json.dumps({"path": "a.py", "content": _CODE * 2000}, ensure_ascii=False)
    edits = json.dumps({"edits": [{"line": n, "text": f"x = {n}\n"} for n in range(3000)]})
    return {
        "prose": "Some words, `code` and a < b.\n" * 4000,
        "a file, JSON": render_call("write", file, form="hermes"),
        "a file, XML": render_call("write", file, form="qwen3_coder"),
        "many small edits, JSON": render_call("write", edits, form="hermes"),
    }


def read(text: str, piece: int) -> float:
    """Microseconds of CPU per character."""
    parser = ToolCallParser([_TOOL], new_id=lambda: "call_1")
    began = time.process_time()
    for start in range(0, len(text), piece):
        parser.feed(text[start : start + piece])
    parser.finish()
    return (time.process_time() - began) / len(text) * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls")
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(f"| answer | piece | µs per character | limit {LIMIT_US:g} |\n|---|---|---|---|")
    is_met = True
    for name, text in answers().items():
        for piece in (4, 64):
            figure = median(read(text, piece) for _ in range(rounds))
            is_met = is_met and figure < LIMIT_US
            verdict = "met" if figure < LIMIT_US else "not met"
            print(f"| {name} | {piece} | {figure:.2f} | {verdict} |")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
