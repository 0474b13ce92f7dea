"""Checks signatures of version 4 as Alibaba OSS does, from what came over the wire alone."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime

_FORM = re.compile(
    r"OSS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/oss/aliyun_v4_request,"
    r"(?:AdditionalHeaders=([^,]+),)?Signature=([0-9a-f]{64})"
)


def why_refused(
    method: str,
    raw_path: str,
    query: str,
    headers: Mapping[str, str],
    *,
    secrets: Mapping[str, tuple[str, str]],
    region: str,
    now: datetime | None = None,
) -> str:
    """The code of OSS's error; empty: the signature is good.

    `raw_path` and `query` are as sent, the path with the bucket; `headers` have lower-case names;
    `secrets` are access key id -> (secret, security token).
    """
    found = _FORM.fullmatch(headers.get("authorization", ""))
    stamp = headers.get("x-oss-date", "")
    if not found or not re.fullmatch(r"\d{8}T\d{6}Z", stamp):
        return "AccessDenied"
    key_id, day, named, additional, signature = found.groups()
    if key_id not in secrets:
        return "InvalidAccessKeyId"
    secret, token = secrets[key_id]
    if headers.get("x-oss-security-token", "") != token:
        return "SecurityTokenInvalid"
    signed_at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if abs(((now or datetime.now(UTC)) - signed_at).total_seconds()) > 900:
        return "RequestTimeTooSkewed"
    if stamp[:8] != day or named != region:
        return "SignatureDoesNotMatch"
    extra = [name for name in (additional or "").lower().split(";") if name]
    always = ("content-type", "content-md5")
    signed = {
        name: value.strip()
        for name, value in headers.items()
        if name in always or name.startswith("x-oss-") or name in extra
    }
    canonical = "\n".join(
        [
            method,
            raw_path,
            "&".join(sorted(query.split("&"))),
            "".join(f"{name}:{signed[name]}\n" for name in sorted(signed)),
            ";".join(sorted(extra)),
            headers.get("x-oss-content-sha256", "UNSIGNED-PAYLOAD"),
        ]
    )
    scope = f"{day}/{region}/oss/aliyun_v4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["OSS4-HMAC-SHA256", stamp, scope, digest])
    signing_key = b"aliyun_v4" + secret.encode()
    for part in (day, region, "oss", "aliyun_v4_request"):
        signing_key = hmac.new(signing_key, part.encode(), hashlib.sha256).digest()
    expected = hmac.new(signing_key, text.encode(), hashlib.sha256).hexdigest()
    return "" if hmac.compare_digest(expected, signature) else "SignatureDoesNotMatch"
