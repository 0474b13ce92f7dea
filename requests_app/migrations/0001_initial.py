import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("access", "0001_initial"),
        ("sessions_app", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="Blob",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "api_key",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="access.apikey",
                    ),
                ),
                ("digest", models.BinaryField(max_length=32)),
                (
                    "kind",
                    models.CharField(
                        choices=[("system", "system"), ("tools", "tools"), ("file", "file")],
                        max_length=8,
                    ),
                ),
                ("body", models.TextField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("api_key", "digest"), name="blob_unique")
                ],
            },
        ),
        migrations.CreateModel(
            name="Worker",
            fields=[
                ("id", models.CharField(max_length=36, primary_key=True, serialize=False)),
                ("host", models.CharField(max_length=255)),
                ("pid", models.IntegerField()),
                ("started_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="Request",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("request_id", models.CharField(max_length=64, unique=True)),
                (
                    "session",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="sessions_app.session",
                    ),
                ),
                (
                    "api_key",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="access.apikey",
                    ),
                ),
                (
                    "prompt",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="sessions_app.message",
                    ),
                ),
                (
                    "system",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="requests_app.blob",
                    ),
                ),
                (
                    "tools",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="requests_app.blob",
                    ),
                ),
                ("dialect", models.CharField(max_length=12)),
                ("method", models.CharField(max_length=8)),
                ("path", models.CharField(max_length=200)),
                ("model", models.CharField(max_length=200)),
                ("stream", models.BooleanField()),
                ("user_agent", models.CharField(max_length=300)),
                ("match", models.CharField(max_length=12)),
                ("upstream", models.CharField(max_length=20)),
                (
                    "account",
                    models.ForeignKey(
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        to="access.upstreamaccount",
                    ),
                ),
                ("created_at", models.DateTimeField()),
                ("upstream_text_digest", models.BinaryField(max_length=32, null=True)),
                ("parameters", models.TextField()),
                ("attempts", models.TextField(default="[]")),
                ("upstream_request", models.TextField(default="")),
            ],
            options={
                "indexes": [
                    models.Index(fields=["created_at", "id"], name="request_created"),
                    models.Index(
                        fields=["api_key", "created_at", "id"], name="request_key_created"
                    ),
                    models.Index(
                        fields=["model", "created_at", "id"], name="request_model_created"
                    ),
                    models.Index(fields=["session", "id"], name="request_session"),
                ],
            },
        ),
        migrations.CreateModel(
            name="Response",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("response_id", models.CharField(max_length=64, unique=True)),
                (
                    "request",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE, to="requests_app.request"
                    ),
                ),
                (
                    "session",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="sessions_app.session",
                    ),
                ),
                (
                    "api_key",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="access.apikey",
                    ),
                ),
                (
                    "reply",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="sessions_app.message",
                    ),
                ),
                (
                    "worker",
                    models.ForeignKey(
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        to="requests_app.worker",
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("in_progress", "in_progress"),
                            ("completed", "completed"),
                            ("failed", "failed"),
                            ("cancelled", "cancelled"),
                            ("interrupted", "interrupted"),
                        ],
                        max_length=12,
                    ),
                ),
                ("finish_reason", models.CharField(max_length=20, null=True)),
                ("error_type", models.CharField(max_length=50, null=True)),
                ("error_code", models.CharField(max_length=50, null=True)),
                ("error_message", models.TextField(null=True)),
                ("http_status", models.IntegerField(null=True)),
                ("client_left", models.BooleanField(default=False)),
                ("prompt_tokens", models.IntegerField(default=0)),
                ("completion_tokens", models.IntegerField(default=0)),
                ("total_tokens", models.IntegerField(default=0)),
                ("reasoning_tokens", models.IntegerField(null=True)),
                ("cached_tokens", models.IntegerField(null=True)),
                ("usage_source", models.CharField(default="", max_length=10)),
                ("upstream_parent_id", models.CharField(max_length=100, null=True)),
                ("ttft_ms", models.IntegerField(null=True)),
                ("duration_ms", models.IntegerField(null=True)),
                ("created_at", models.DateTimeField()),
                ("completed_at", models.DateTimeField(null=True)),
                ("upstream_response", models.TextField(default="")),
                ("reasoning", models.TextField(default="")),
            ],
            options={
                "indexes": [
                    models.Index(fields=["created_at", "id"], name="response_created"),
                    models.Index(
                        fields=["api_key", "created_at", "id"], name="response_key_created"
                    ),
                    models.Index(
                        fields=["status", "created_at", "id"], name="response_status_created"
                    ),
                    models.Index(fields=["session", "id"], name="response_session"),
                    models.Index(
                        condition=models.Q(("status", "in_progress")),
                        fields=["worker"],
                        name="response_running",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Partial",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "response",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="requests_app.response",
                    ),
                ),
                ("seq", models.IntegerField()),
                ("events", models.TextField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("response", "seq"), name="partial_unique")
                ],
            },
        ),
        migrations.CreateModel(
            name="UsageSlot",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "dim",
                        "slot",
                        "ref",
                        "status",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("dim", models.CharField(max_length=8)),
                ("slot", models.IntegerField()),
                ("ref", models.CharField(max_length=200)),
                ("status", models.CharField(max_length=12)),
                ("n", models.BigIntegerField()),
                ("tokens_in", models.BigIntegerField()),
                ("tokens_out", models.BigIntegerField()),
                ("ms_sum", models.BigIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name="LatencySlot",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "dim",
                        "metric",
                        "slot",
                        "ref",
                        "bucket",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("dim", models.CharField(max_length=8)),
                ("metric", models.CharField(max_length=8)),
                ("slot", models.IntegerField()),
                ("ref", models.CharField(max_length=200)),
                ("bucket", models.IntegerField()),
                ("n", models.BigIntegerField()),
            ],
        ),
    ]
