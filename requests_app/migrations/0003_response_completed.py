"""What finished in a quarter of an hour, for the roll-ups.

PostgreSQL makes the index while others write, which it cannot do in a transaction.
"""

from __future__ import annotations

from django.db import migrations, models

from qwenproxy.schema.operations import AddIndexOnline


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("requests_app", "0002_recorded")]
    operations = [
        AddIndexOnline(
            "response",
            models.Index(
                fields=["completed_at"],
                name="response_completed",
                condition=models.Q(completed_at__isnull=False),
            ),
        )
    ]
