"""The doubles' small model: it answers from the messages on its path and from nothing else.

Asked to pick a word, it makes one up that only its own answer holds; asked for the word later, it
finds it only if that answer, or a text that quotes it, really reached it. So a test can tell whether
the context arrived.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

_GIVEN = re.compile(r"My word is ([a-z]+-[0-9a-f]{12})")
_ROOTS = ("amber", "birch", "cobalt", "dune", "ember", "fjord", "granite", "heron")

UNKNOWN = "I do not know"


def answer(path: Sequence[tuple[str, str]], prompt: str) -> str:
    """Answer `prompt` below `path`, the (role, text) messages before it."""
    asked = prompt.lower()
    picks, recalls = asked.rfind("pick a word"), asked.rfind("what was your word")
    if recalls > picks:
        # The prompt itself counts: a conversation rebuilt in a new chat arrives as one text.
        known = [prompt, *(text for role, text in reversed(path) if role == "assistant")]
        for text in known:
            if found := _GIVEN.findall(text):
                return f"The word was {found[-1]}."
        return UNKNOWN
    if picks >= 0:
        return f"My word is {secrets.choice(_ROOTS)}-{secrets.token_hex(6)}."
    return f"You said: {prompt}"


def word_in(text: str) -> str | None:
    """The word that an answer of this model names."""
    found = re.search(r"[a-z]+-[0-9a-f]{12}", text)
    return found[0] if found else None


def pieces(text: str) -> list[str]:
    """Cut an answer as a model's tokens would be: words with the space before them."""
    return re.findall(r"\s*\S+|\s+$", text)
