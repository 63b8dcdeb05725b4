"""Where a measure means something: one rule for the runner, the dry run and `evalkit explain`."""

from __future__ import annotations

from evalkit.registry import MetricInfo


def why_not(info: MetricInfo, domain: str, sample_rate: int | None, seconds: float | None) -> str | None:
    """The reason why a metric does not apply to such audio, or None. Unknown (None) rate or length pass."""
    if info.domains is not None and domain not in info.domains:
        return f"{info.name} is defined for {' and '.join(info.domains)}, this is {domain}"
    if info.sample_rates is not None and sample_rate is not None and sample_rate not in info.sample_rates:
        return f"{info.name} is defined at {', '.join(map(str, info.sample_rates))} Hz, this is {sample_rate} Hz"
    if sample_rate is not None and sample_rate < info.min_sample_rate:
        return f"{info.name} judges audio of at least {info.min_sample_rate} Hz, this is {sample_rate} Hz"
    if seconds is not None and seconds < info.min_seconds:
        return f"{info.name} needs at least {info.min_seconds:g} s, the clip has {seconds:.3g} s"
    if seconds is not None and info.max_seconds is not None and seconds > info.max_seconds:
        return f"{info.name} takes at most {info.max_seconds:g} s, the clip has {seconds:.3g} s"
    return None
