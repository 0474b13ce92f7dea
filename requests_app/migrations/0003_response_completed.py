"""What finished in a quarter of an hour, for the roll-ups."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("requests_app", "0002_recorded")]
    operations = [
        migrations.AddIndex(
            "response",
            models.Index(
                fields=["completed_at"],
                name="response_completed",
                condition=models.Q(completed_at__isnull=False),
            ),
        )
    ]
