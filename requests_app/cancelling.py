"""That a running answer is to end, said to the process that gives it by one that does not.

The mark is the `finish_reason` of a row that is still in progress. Whoever writes the answer's end writes over
it, so that no mark outlives its answer, and a row that has ended is never marked.
"""

from __future__ import annotations

from collections.abc import Collection

from qwenproxy.transaction import Transaction
from requests_app.models import Response

CANCELLED = "cancelled"
_RUNNING = "in_progress"


def ask_to_cancel(tx: Transaction, response_id: str) -> None:
    """Mark an answer, unless it has ended."""
    tx.execute(
        "UPDATE requests_app_response SET finish_reason = %s"
        " WHERE response_id = %s AND status = 'in_progress'",
        [CANCELLED, response_id],
    )


def asked_to_cancel(response_ids: Collection[str]) -> list[str]:
    """Those of them that are marked and have not ended; by one query on the unique index."""
    rows = Response.objects.filter(
        response_id__in=response_ids, status=_RUNNING, finish_reason=CANCELLED
    )
    return list(rows.values_list("response_id", flat=True))


def is_running(response_id: str) -> bool:
    """Whether an answer is in progress; one that was deleted is not."""
    return Response.objects.filter(response_id=response_id, status=_RUNNING).exists()
