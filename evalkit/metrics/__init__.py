"""Measures, one family a file. A metric is a pure function and a declaration; see `evalkit.registry.MetricInfo`."""
