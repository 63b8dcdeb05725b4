"""Turning values and strangers' text into cells: numbers, escaping for markdown and terminals."""

from __future__ import annotations

import html
import math
import re

from evalkit.errors import EvalkitError


def escape_markdown(text: str) -> str:
    r"""Untrusted text (file names, reasons, spec strings) as inert markdown: one line, no HTML, no table breaks.

    >>> escape_markdown("a|b\n<img src=x onerror=1> [x](y) `z`")
    'a\\|b\\\\n&lt;img src=x onerror=1&gt; \\[x\\](y) \\`z\\`'
    """
    text = " ".join(printable(text).split())
    return re.sub(r"([\\|`*_\[\]#~])", r"\\\1", html.escape(text, quote=False))


def code(text: str) -> str:
    """Text as an inline code span; falls back on escaping where it holds a backtick."""
    text = " ".join(printable(text).split())
    if "`" in text:
        return escape_markdown(text)
    return "`" + text.replace("|", "\\|") + "`"


def printable(text: str) -> str:
    r"""Control characters (terminal escapes, newlines) and lone surrogates written out.

    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb\\nc'
    """
    out = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in out)


def number(value: float, decimals: int | None = None) -> str:
    """A value with ``decimals``, or 4 significant digits.

    >>> number(0.00012346), number(12.3456, 2), number(0.0)
    ('0.0001235', '12.35', '0')
    """
    if decimals is None:
        text = f"{value:.4g}"
    elif value and abs(value) < 0.5 * 10**-decimals:
        text = f"{value:.2g}"
    else:
        text = f"{value:.{decimals}f}"
    return "0" if float(text) == 0 else text


def decimals_for(value: float, low: float | None, high: float | None) -> int | None:
    """Decimals that show two digits of the interval's width and three of the value; None (4 digits) without one."""
    if low is None or high is None or not high > low:
        return None
    decimals = 1 - math.floor(math.log10(high - low))
    if value:
        decimals = max(decimals, 2 - math.floor(math.log10(abs(value))))
    return None if decimals > 6 else max(0, decimals)


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """``12.35 [11.95, 12.75]``.

    >>> with_interval(12.3456, 11.95, 12.75)
    '12.35 [11.95, 12.75]'
    """
    d = decimals_for(value, low, high)
    if low is None or high is None:
        return number(value, d)
    return f"{number(value, d)} [{number(low, d)}, {number(high, d)}]"


def safe_name(name: str) -> str:
    """A task name as a file name: no separators, no leading dot."""
    clean = "".join(c if c.isalnum() or c in "-_.=+" else "_" for c in name).lstrip(".")
    if not clean:
        raise EvalkitError(f"{name!r} gives no file name")
    return clean
