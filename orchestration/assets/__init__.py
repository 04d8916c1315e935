"""One module per layer, in the order of the data flow. Each asset is a thin shell around a function or a job.

No `from __future__ import annotations` here: Dagster reads the annotations of assets when they are defined, and
cannot resolve the names of a builder's own scope from strings.
"""
