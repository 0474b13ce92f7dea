"""All routes."""

from __future__ import annotations

from django.contrib import admin
from django.templatetags.static import static
from django.urls import path
from django.views.generic import RedirectView

from qwenproxy import health
from qwenproxy.api import api, operations_api

admin.autodiscover()

urlpatterns = [
    path("v1/", api.urls),
    path("api/", operations_api.urls),
    path("healthz", health.alive),
    path("health", health.alive),
    path("health/detailed", health.detailed),
    path("readyz", health.ready),
    path("metrics", health.show_metrics),
    path("admin/", admin.site.urls),
    # Browsers ask for it on pages that name no icon: raw JSON, the documentation.
    path("favicon.ico", RedirectView.as_view(url=static("qwenproxy/icon.svg"))),
    path("", RedirectView.as_view(url="/admin/")),
]
