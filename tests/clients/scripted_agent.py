"""A model that does one thing: it reads the file it is asked about, with whatever tool it is offered.

It knows the file's word only from a tool's result that really reached it, so a test can tell whether
the call and its result came through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.doubles.server import Exchange, Recorded, Reply

# Of all tools tried, the first that is offered.
_READERS = ("read_file", "read", "exec_command", "shell_command", "shell", "bash")
# As home.notes has it; agents put ids of the same form into their prompts.
_WORD = re.compile(r"The word is ([a-z]+-[0-9a-f]{12})\.")
_ARGUMENT = re.compile(r"path|^cmd$|^command$", re.IGNORECASE)


class ReadingAgent:
    """Takes the place of a double's small model. `calls` are the calls it made, `asked` its prompts."""

    def __init__(self, upstream: Any, path: str) -> None:
        self.kind = upstream.kind
        self.path = path
        self.calls: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self._double = upstream.double
        self._answer = upstream.double.answer
        upstream.double.answer = self.answer

    async def answer(self, request: Recorded, exchange: Exchange) -> None:
        if request.path == self._double.completions_path:
            # The double takes it before anything else can run.
            self._double.enqueue(self._reply(request.body))
        await self._answer(request, exchange)

    def _reply(self, body: dict[str, Any]) -> Reply:
        asked = body["messages"]
        self.asked.append(json.dumps(asked))
        if found := _WORD.search(self.asked[-1]):
            return Reply(text=f"The file says: {found[1]}.")
        tools = {tool["name"].lower(): tool for tool in self._tools(body)}
        reader = next((tools[name] for name in _READERS if name in tools), None)
        if reader is None:
            # Titles and the like are asked for without tools.
            return Reply(text="Reading notes")
        call = {"name": reader["name"], "arguments": self._arguments(reader)}
        self.calls.append(call)
        if self.kind == "qwen_web":
            return Reply(text=f"Let me look.\n<tool_call>\n{json.dumps(call)}\n</tool_call>")
        call["arguments"] = json.dumps(call["arguments"])
        return Reply(tool_calls=[{"id": "call_1", "type": "function", "function": call}])

    def _tools(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self.kind != "qwen_web":
            yield from (tool["function"] for tool in body.get("tools") or ())
            return
        for line in body["messages"][0]["content"].splitlines():
            if line.startswith('{"type":"function"'):
                yield json.loads(line)["function"]

    def _arguments(self, tool: dict[str, Any]) -> dict[str, Any]:
        properties = tool["parameters"]["properties"]
        name = next(name for name in properties if _ARGUMENT.search(name))
        if "path" in name.lower():
            return {name: self.path}
        command = ["cat", self.path]
        is_list = properties[name]["type"] == "array"
        arguments: dict[str, Any] = {name: command if is_list else " ".join(command)}
        if "description" in tool["parameters"].get("required", ()):
            arguments["description"] = "Read the notes"
        return arguments
