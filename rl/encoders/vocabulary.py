"""The public vocabulary: which words anybody may have written, and which are names of people.

Here: reading the word lists in `words/`. Not here: what is done to the words that are not in them (`scrubbing`,
`customer_replies`). `words/SOURCES.md` says where each list comes from, its licence and how it was made; none was
made from a log.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

PLACEHOLDERS = ("NAME", "WORD", "EMAIL", "PHONE", "CARD", "IBAN", "NUMBER", "ACCOUNT", "DATE", "ADDRESS", "URL")
"""What scrubbing puts in place of personal data, in angle brackets."""

_FOLDER = Path(__file__).parent / "words"


@cache
def common_words() -> frozenset[str]:
    """About 16,400 everyday English words in lower case, contractions among them."""
    return _words("common_words")


@cache
def dictionary_words() -> frozenset[str]:
    """About 64,000 English words in lower case: the common ones and rarer ones."""
    return common_words() | _words("rarer_words")


@cache
def personal_names() -> frozenset[str]:
    """Given names and surnames that are no dictionary words, in lower case."""
    return _words("personal_names")


@cache
def name_words() -> frozenset[str]:
    """Dictionary words that are given names as well (april, grace, mark), in lower case."""
    return _words("name_words")


@cache
def proper_words() -> frozenset[str]:
    """Places, peoples, brands, months and other proper nouns that are no names of people, in lower case."""
    return _words("proper_words")


def _words(name: str) -> frozenset[str]:
    return frozenset((_FOLDER / f"{name}.txt").read_text(encoding="utf-8").split())
