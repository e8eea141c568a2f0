"""Numbers, times and hostile text as people read them."""

from __future__ import annotations

import json
import re
import time
from typing import Any

# HTML forbids some control characters, and those of direction show a reader another order.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown(value: Any) -> str:
    """A number as people read it: 1,234,567 or 1.235; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        return f"{value:,.0f}"
    return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) >= 0.001 or not value else f"{value:.2e}"


def percent(share: float) -> str:
    """A share of 1 as a percentage, with a digit behind the point where it is small."""
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def short(count: float) -> str:
    """A large number with its unit: 1.2 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}\N{NO-BREAK SPACE}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def when(seconds: float) -> str:
    """A time as a date in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def rate(name: str, value: Any) -> str:
    """A measured number as text: shares as percentages."""
    if value is None:
        return "–"
    return percent(value) if name.endswith(("_accuracy", "_rate", "_said")) else shown(value)


def facts(pairs: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs that are known, values as text."""
    return [(label, shown(value)) for label, value in pairs.items() if value is not None]


def plain(text: Any) -> str:
    """Text without control characters: HTML forbids some, and those of direction show a reader another order."""
    return _CONTROL.sub("\ufffd", str(text))
