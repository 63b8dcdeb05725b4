"""Speech recognisers for word and character error rates: plug-ins declared with `evalkit.registry.recogniser`.

A recogniser's ``load()`` gives an object with ``transcribe(samples) -> str``. Its answer for a clip must depend on that
clip alone, not on what was recognised before.
"""

from __future__ import annotations

import functools
from typing import Any

from evalkit.audio import Clip, mono, resample
from evalkit.errors import ContractError

__all__ = ["transcribe"]


def transcribe(clip: Clip, name: str) -> str:
    """What the recogniser ``name`` hears in a clip: in the mean of its channels, at the recogniser's rate.

    The text is as the recogniser gives it, "" where it hears nothing. Remembered on the clip; the loaded recogniser is
    kept for the life of the process.

    Raises:
        NotApplicable: its package or weights are absent, or the clip is not what it takes.
        UsageError: no recogniser of that name.
        ContractError: it gave something else than text.
    """

    def recognise() -> str:
        from evalkit import registry

        rate = registry.get("recognisers", name).sample_rate
        text = _loaded(name).transcribe(resample(mono(clip), rate).samples[0])
        if not isinstance(text, str):
            raise ContractError(f"recogniser {name!r} returned {type(text).__name__}, expected str")
        return text

    return clip.memo(("transcript", name), recognise)


@functools.cache
def _loaded(name: str) -> Any:
    from evalkit import registry

    return registry.get("recognisers", name).load()
