"""Durations in buckets that grow by a tenth: merged by adding up, read to within 5 %.

Bucket `b` holds the milliseconds from 1.1**b up to 1.1**(b + 1). A percentile is given as the middle of
its bucket, which is at most 4.9 % away from the true one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

_BASE = 1.1
_LN_BASE = math.log(_BASE)


def bucket_of(ms: int) -> int:
    """The bucket of a whole number of milliseconds; none is shorter than one."""
    return int(math.log(ms) / _LN_BASE) if ms > 1 else 0


def percentile(buckets: Mapping[int, int], share: float) -> float | None:
    """Milliseconds that `share` (0 to 1) of the counted durations do not exceed; null of none."""
    rank = math.ceil(sum(buckets.values()) * share)
    for bucket in sorted(buckets):
        rank -= buckets[bucket]
        if rank <= 0 and buckets[bucket]:
            # Rounded to whole milliseconds, short ones would be off by more than the bucket is wide.
            return round(math.pow(_BASE, bucket + 0.5), 1)
    return None
