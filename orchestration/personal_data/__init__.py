"""What a person may ask for and a store may not keep: erasure, retention, new keys, and the proof of each.

Not here: pseudonyms and tombstones while a log is read (`orchestration.ingest`), private release (`registry.privacy`).
"""
