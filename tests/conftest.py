"""Shared fixtures. Real audio lies beside the checkout in ``../shared``; tests that need it skip without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("evalkit", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("evalkit")

SHARED = Path(os.environ.get("EVALKIT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real audio, weights and reference results; the test is skipped where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"real audio not found at {SHARED} (set EVALKIT_SHARED)")
    return SHARED
