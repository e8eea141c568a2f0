"""Numbers and times as people read them."""

from __future__ import annotations

import json
import re
import time
from typing import Any

# Names of shares: `hellaswag_accuracy_normalised` and `arithmetic.accuracy_with_tool` as well as `sampled_accuracy`.
_SHARE = re.compile("accuracy|_rate$|_said$")
_LENGTH = re.compile("_length$")  # a mean of whole numbers


def shown(value: Any) -> str:
    """A number as people read it: 1,234,567 or 1.235; strings as they are; anything else as JSON."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, int) or (abs(value) >= 1000 and value == round(value)):
        return f"{value:,.0f}"
    return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) >= 0.001 or not value else f"{value:.2e}"


def percent(share: float) -> str:
    """A share (0…1) as a percentage with one decimal, as the terminal shows it; what is there is never 0."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def short(count: float) -> str:
    """A large number with a unit: 1.2 M."""
    rounded = float(f"{count:.3g}")  # first, or 999,700 would be 1,000 k
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if rounded >= size:
            return f"{rounded / size:g}\N{NO-BREAK SPACE}{unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Seconds as `4.5 s`, `3 min 2 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def when(seconds: float) -> str:
    """A time as a date in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def rate(name: str, value: Any) -> str:
    """A measured number as text; shares and mean lengths, which their name identifies, alike; a dash for None."""
    if value is None:
        return "–"
    if _SHARE.search(name):
        return percent(value)
    return f"{value:,.1f}" if _LENGTH.search(name) else shown(value)


def facts(pairs: dict[str, Any]) -> list[tuple[str, str]]:
    """Label and value as text, of the values that are not None."""
    return [(label, shown(value)) for label, value in pairs.items() if value is not None]
