"""Tools as text, for upstreams without native tool calls: the prompt that explains them, and the
parser that reads calls from an answer.

Two written forms, those that Qwen models know from training: `hermes` (JSON in `<tool_call>`) and
`qwen3_coder` (`<function=...><parameter=...>`). Only answer text is read: a call inside reasoning is
a thought, and stays one.
"""

from __future__ import annotations

from qwenproxy.wire.tool_calls.parser import ToolCallParser, may_be_intercepted
from qwenproxy.wire.tool_calls.prompts import render_call, shorten_tools, tool_prompt
from qwenproxy.wire.tool_calls.specs import ToolForm, ToolSpec, parse_tools

__all__ = [
    "ToolCallParser",
    "ToolForm",
    "ToolSpec",
    "may_be_intercepted",
    "parse_tools",
    "render_call",
    "shorten_tools",
    "tool_prompt",
]
