"""The sound tokenizer: VAE, vector quantization and conditional flow matching at 0.234 kbps. See docs/tokenizer.md.

>>> from tokenizer import SoundTokenizer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["SoundTokenizer", "TokenizerConfig"]


def __getattr__(name: str) -> Any:
    """Import on first use: `tokenizer.systems` is imported to list systems, which must not cost torch."""
    if name in __all__:
        import tokenizer.codec

        return getattr(tokenizer.codec, name)
    raise AttributeError(f"module 'tokenizer' has no attribute {name!r}")


if TYPE_CHECKING:
    from tokenizer.codec import SoundTokenizer, TokenizerConfig
