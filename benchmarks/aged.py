"""`python -m benchmarks.aged DIRECTORY`: fill a gateway's data directory with old sessions, on SQLite.

One exchange of 600 characters, doubled until there are 131,072 sessions of as many requests, last
used more than a year ago. The database has its tables and nothing else.
"""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

DOUBLED = 17
SESSIONS = 2**DOUBLED
_AGE = timedelta(days=400)
OLD_ID = "00000000-0000-4000-8000-"


def _first() -> None:
    # After `django.setup`.
    from qwenproxy.access.models import ApiKey
    from qwenproxy.wire import history
    from requests_app.models import Request, Response
    from sessions_app.models import Message, Session

    then = datetime.now(UTC) - _AGE
    key = ApiKey.objects.create(name="old", prefix="qp-old", secret_hash="0" * 64)
    session = Session.objects.create(
        id=f"{OLD_ID}{0:012d}", api_key=key, title="old", context_digest=b"",
        request_count=1, created_at=then, last_accessed=then, expires_at=then,
    )  # fmt: skip
    above, messages = history.root_digest(key.pk), []
    for position, body in enumerate(
        ({"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y" * 300})
    ):
        above = history.message_digest(above, body)
        messages.append(
            Message.objects.create(
                id=position + 1, session=session, parent=messages[-1] if messages else None,
                digest=above, role=body["role"], content=history.encode_content(body),
                dialect="chat", position=position, given=position == 1, created_at=then,
            )
        )  # fmt: skip
    prompt, reply = messages
    request = Request.objects.create(
        id=1, request_id=f"req_{0:012d}", session=session, api_key=key, prompt=prompt,
        parameters="{}", dialect="chat", method="POST", path="/v1/chat/completions", model="m",
        stream=False, user_agent="benchmark/1", match="new", upstream="new", created_at=then,
    )  # fmt: skip
    Response.objects.create(
        id=1, response_id=f"chatcmpl-{0:012d}", request=request, session=session, api_key=key,
        status="completed", finish_reason="stop", http_status=200, duration_ms=10, reply=reply,
        created_at=then, completed_at=then,
    )  # fmt: skip


def _double(step: int) -> None:
    # After `django.setup`.
    from django.db import connection

    from requests_app.models import Request, Response
    from sessions_app.models import Message, Session

    count = 2**step
    shifts: dict[Any, dict[str, str]] = {
        Session: {"id": _moved("id", OLD_ID, count)},
        Message: {"id": f"id + {2 * count}", "parent_id": f"parent_id + {2 * count}"},
        Request: {
            "id": f"id + {count}",
            "request_id": _moved("request_id", "req_", count),
            "prompt_id": f"prompt_id + {2 * count}",
        },
        Response: {
            "id": f"id + {count}",
            "response_id": _moved("response_id", "chatcmpl-", count),
            "request_id": f"request_id + {count}",
            "reply_id": f"reply_id + {2 * count}",
        },
    }
    with connection.cursor() as cursor:
        for model, changed in shifts.items():
            if model is not Session:
                changed["session_id"] = _moved("session_id", OLD_ID, count)
            columns = [str(field.column) for field in model._meta.concrete_fields]
            values = ", ".join(changed.get(column, column) for column in columns)
            cursor.execute(
                f"INSERT INTO {model._meta.db_table} ({', '.join(columns)})"
                f" SELECT {values} FROM {model._meta.db_table} WHERE true"
            )


def _moved(column: str, head: str, by: int) -> str:
    number = f"CAST(substr({column}, {len(head) + 1}) AS integer) + {by}"
    return f"printf('{head}%012d', {number})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aged")
    parser.add_argument("directory", type=Path)
    os.environ["QWENPROXY_DATA_DIR"] = str(parser.parse_args().directory)
    os.environ["DJANGO_SETTINGS_MODULE"] = "qwenproxy.settings"
    # The settings are read from what was just set.
    import django

    django.setup()
    _first()
    for step in range(DOUBLED):
        _double(step)


if __name__ == "__main__":
    main()
