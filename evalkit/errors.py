"""The few exceptions evalkit raises on purpose. Each message names the thing, what is wrong and the remedy."""

from __future__ import annotations


class EvalkitError(Exception):
    """Base of every error evalkit raises itself."""


class UsageError(EvalkitError):
    """The request cannot be carried out as it stands (unknown name, bad option, bad spec). Exit code 1."""


class AudioError(EvalkitError):
    """A file or a buffer is not the audio it should be."""


class DataError(EvalkitError):
    """A data set is absent, incomplete in a way that matters, or laid out unlike its official form."""


class ContractError(EvalkitError):
    """A system broke its contract (wrong length, wrong type, non-finite output)."""


class Unavailable(EvalkitError):
    """Something optional (package, weights) is not installed; the message says how to get it."""


class NotApplicable(Exception):
    """Raised by a metric or a system to say that a value would be meaningless here.

    It becomes ``n/a: <reason>`` in the record and the tables; it is never a failure and never a number.
    """
