"""Responses that were deleted by OpenAI's API."""

from __future__ import annotations

from django.db import migrations, models

from qwenproxy.schema.operations import FastAddField


class Migration(migrations.Migration):
    dependencies = [("requests_app", "0005_message_files")]
    operations = [
        FastAddField(
            model_name="response",
            name="withdrawn_at",
            field=models.DateTimeField(null=True),
        ),
    ]
