"""The admin site."""

from __future__ import annotations

from django.contrib.admin import AdminSite


class GatewayAdminSite(AdminSite):
    site_header = "Qwen Proxy"
    site_title = "Qwen Proxy"
    index_title = "Overview"
