"""Studies on known truth: long, resumable computations whose short forms run in the tests."""
