"""Clients of PyPI read or edit a file through the gateway, on both kinds of upstream, as `docs/clients.md` sets them up."""

from __future__ import annotations

import secrets

import pytest

from tests.clients.conftest import TASK
from tests.clients.running import AIDER, PYTHON, needs
from tests.doubles.server import Reply

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

LLM_TOOL = '''
def read_file(path: str) -> str:
    """Read a text file."""
    with open(path) as file:
        return file.read()
'''

LANGCHAIN_AGENT = """
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def read_file(path: str) -> str:
    "Read a text file."
    with open(path) as file:
        return file.read()


model = ChatOpenAI(model=sys.argv[1], streaming=sys.argv[2] == "stream").bind_tools([read_file])
messages = [HumanMessage(sys.argv[3])]
while True:
    answer = model.invoke(messages)
    messages.append(answer)
    if not answer.tool_calls:
        break
    for call in answer.tool_calls:
        result = read_file.invoke(call["args"])
        messages.append(ToolMessage(result, tool_call_id=call["id"]))
print(answer.text)
"""


@needs(PYTHON / "llm")
@pytest.mark.parametrize("options", [(), ("--no-stream",)], ids=["streamed", "whole"])
def test_llm_reads_a_file(reading, options):
    models = reading.home.path / "extra-openai-models.yaml"
    models.write_text(
        f"""
- model_id: qwen
  model_name: {reading.model}
  api_base: {reading.url}/v1
  api_key_name: qwenproxy
  supports_tools: true
"""
    )
    output = reading.home.run(
        *(PYTHON / "llm", "-m", "qwen", "--key", reading.api_key, *options),
        *("--functions", LLM_TOOL, TASK),
        LLM_USER_PATH=str(reading.home.path),
    )
    reading.check(output)


@needs(PYTHON / "python")
@pytest.mark.parametrize("form", ["stream", "whole"])
def test_langchain_reads_a_file(reading, form):
    output = reading.home.run(
        *(PYTHON / "python", "-c", LANGCHAIN_AGENT, reading.model, form, TASK),
        OPENAI_BASE_URL=f"{reading.url}/v1",
        OPENAI_API_KEY=reading.api_key,
    )
    reading.check(output)


@needs(AIDER / "aider")
def test_aider_edits_a_file(home, open_gateway, upstream):
    """It has no tools: it sends the file with the task, and finds the edit in the answer's text."""
    new = f"heron-{secrets.token_hex(6)}"
    edit = f"<<<<<<< SEARCH\nThe word is {home.word}.\n=======\nThe word is {new}.\n>>>>>>> REPLACE"
    upstream.enqueue(Reply(text=f"The new word:\n\nnotes.txt\n```\n{edit}\n```\n"))
    gateway = open_gateway()
    home.run(
        *(AIDER / "aider", "--model", f"openai/{upstream.model}", "--edit-format", "diff"),
        *("--no-git", "--yes-always", "--no-check-update", "--analytics-disable"),
        *("--no-show-model-warnings", "--no-show-release-notes", "--no-detect-urls"),
        *("--message", "Put another word into the notes.", "notes.txt"),
        OPENAI_API_BASE=f"{gateway.url}/v1",
        OPENAI_API_KEY=gateway.api_key,
        LITELLM_LOCAL_MODEL_COST_MAP="True",
    )
    assert home.notes.read_text("utf-8") == f"The word is {new}.\n"
    assert len(upstream.turns) == 1
