"""Cost measures: arithmetic, and what is not applicable."""

from __future__ import annotations

import pytest

from evalkit import registry
from evalkit.cost import Cost
from evalkit.errors import NotApplicable
from evalkit.metrics.cost import COST, decode_rtf, encode_rtf, parameters_m, peak_memory_mb


def test_registered_under_the_declared_names() -> None:
    for name in COST:
        info = registry.get("metrics", name)
        assert (info.group, info.level, info.needs, info.direction) == ("cost", "sample", ("cost",), "lower")
        assert info.deterministic == (name == "parameters_m") and info.summary


def test_values() -> None:
    cost = Cost(encode_s=0.25, decode_s=1.5, audio_s=2.5, peak_bytes=123_456_789, parameters=14_851_810)
    assert encode_rtf(cost) == pytest.approx(0.1)
    assert decode_rtf(cost) == pytest.approx(0.6)
    assert peak_memory_mb(cost) == pytest.approx(123.456789)
    assert parameters_m(cost) == pytest.approx(14.85181)
    assert parameters_m(Cost(None, 1.0, 1.0, None, parameters=0)) == 0.0


def test_not_applicable() -> None:
    cost = Cost(encode_s=None, decode_s=1.0, audio_s=1.0, peak_bytes=None)
    for function, reason in (
        (encode_rtf, "no encoder"),
        (peak_memory_mb, "cannot be measured"),
        (parameters_m, "does not state"),
    ):
        with pytest.raises(NotApplicable, match=reason):
            function(cost)
    for function in (encode_rtf, decode_rtf):
        with pytest.raises(NotApplicable, match="no audio"):
            function(Cost(encode_s=1.0, decode_s=1.0, audio_s=0.0, peak_bytes=None))
