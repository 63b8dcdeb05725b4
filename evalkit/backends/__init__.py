"""Isolated backends: packages that cannot share an environment with evalkit run in one of their own.

A backend is declared by an `evalkit.registry.BackendInfo`; `evalkit.backends.install` builds its environment,
`evalkit.backends.client.Backend` asks its worker, and `evalkit.backends.protocol` is the worker's side. See
docs/backends.md.
"""

from __future__ import annotations
