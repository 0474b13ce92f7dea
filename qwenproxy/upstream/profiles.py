"""Facts per family of Qwen models, read from a model's name alone.

Only facts that something uses stand here. Unknown names get those of the general models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwenproxy.wire.tool_calls import ToolForm

# `qwen3.5-plus`, `Qwen/Qwen3-Coder-30B`, `qwen2p5-7b` (some hosts write the point as a letter).
_GENERATION = re.compile(r"qwen[-_ ]?(\d{1,2})(?:[.p](\d{1,2}))?(?![\db])")


@dataclass(frozen=True, slots=True)
class Profile:
    # The written form of tool calls that the model knows from training.
    tool_form: ToolForm = "hermes"


def profile_for(model: str) -> Profile:
    """Tell the facts of a model by its name, whatever vendor path, tag or case it comes with."""
    name = model.casefold()
    found = _GENERATION.search(name.rsplit("/", 1)[-1]) or _GENERATION.search(name)
    if found is None:
        return Profile()
    generation = (int(found[1]), int(found[2] or 0))
    is_coder = generation >= (3, 0) and "coder" in name
    return Profile("qwen3_coder" if is_coder or generation >= (3, 5) else "hermes")
