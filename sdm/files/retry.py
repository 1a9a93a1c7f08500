"""What a busy server asks for."""

import email.utils
from datetime import UTC, datetime


def retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 when it is missing or invalid."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
