from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0002_limits_and_health"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="apikey",
            options={
                "permissions": [
                    ("use_playground", "Can use the playground"),
                    ("view_health", "Can see the health page"),
                ],
                "verbose_name": "API key",
            },
        ),
    ]
