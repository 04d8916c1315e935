"""Benchmarks: each row compares us with a peer, or with a stated aim, in the same process run. Never a timed test."""
