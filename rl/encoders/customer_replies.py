"""What a customer's reply does, and its canonical form: closed inventories, by rules, never fitted on a log.

Here: the acts and their matcher, the canonical form. Not here: scrubbing (`scrubbing`), counting and releasing
(`registry.privacy`).

The released tables name customers' replies by these two alone, so both have to be public by construction: the acts are
a fixed list, and a canonical reply is a few words of a public vocabulary. They are data: `acts/customer_acts.csv`
holds the acts in order of precedence with the communicative functions of ISO 24617-2 that they gather,
`acts/customer_act_cues.csv` the words that tell them. Both were written for talks that sell, serve or persuade, in
English; other languages give `other`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from rl.encoders.vocabulary import PLACEHOLDERS, common_words, name_words

_FOLDER = Path(__file__).parent / "acts"
_CACHED_TEXTS = 65_536  # short replies come back all the time, and a text that never does costs little more


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (_FOLDER / name).open(newline="", encoding="utf-8") as stream:
        yield from csv.DictReader(stream)


CUSTOMER_ACTS: tuple[str, ...] = tuple(row["act"] for row in _rows("customer_acts.csv"))
"""The inventory, in order of precedence: of several acts in one utterance the first here counts."""

REPLIES_VERSION = "2"
"""Raised with every change that can alter an act or a canonical reply."""

MAX_REPLY_TOKENS = 8
"""Longer replies have no canonical form: they are rare, and the rarer a text, the more it says of its author."""

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?(?:-[a-z]+)*|[?$€£]")
_STRONG, _QUESTION, _WEAK = 0, len(CUSTOMER_ACTS), len(CUSTOMER_ACTS) + 1


def _ranks(place: str) -> dict[tuple[str, ...], int]:
    """Cue → rank: strong ones by their act's precedence, then a question mark, then weak ones."""
    offset = {"strong": _STRONG, "weak": _WEAK}
    ranks: dict[tuple[str, ...], int] = {}
    for row in _rows("customer_act_cues.csv"):
        if row["place"] in ("any", place):
            cue = tuple(row["cue"].split(" "))
            rank = offset[row["strength"]] + CUSTOMER_ACTS.index(row["act"])
            ranks[cue] = min(rank, ranks.get(cue, rank))  # a cue of two acts is that of the one with precedence
    return ranks


_ANYWHERE, _AT_START = _ranks("any"), _ranks("start")
_ACT_BY_RANK = (*CUSTOMER_ACTS, "question", *CUSTOMER_ACTS)
_NOTHING_FOUND = len(_ACT_BY_RANK) - 1

# Words that open an utterance and leave its start to the next word: "Oh no, thanks", "Well, yes".
_OPENERS = frozenset({"oh", "ah", "um", "uh", "well", "hm", "hmm", "mm", "so", "and", "but", "haha", "lol", "sorry"})


def _cues_by_first_word(ranks: dict[tuple[str, ...], int]) -> dict[str, tuple[tuple[int, tuple[str, ...], int], ...]]:
    """First word → (length, cue, rank), longest first."""
    found: dict[str, list[tuple[int, tuple[str, ...], int]]] = {}
    for cue, rank in ranks.items():
        found.setdefault(cue[0], []).append((len(cue), cue, rank))
    return {word: tuple(sorted(cues, reverse=True)) for word, cues in found.items()}


_START_CUES = _cues_by_first_word(_AT_START | {("?",): _QUESTION})
_CUES = _cues_by_first_word(_ANYWHERE | {("?",): _QUESTION})
_GREETING_RANKS = frozenset(i for i, act in enumerate(_ACT_BY_RANK) if act == "greeting")


@lru_cache(maxsize=_CACHED_TEXTS)
def customer_act(text: str) -> str:
    """The act of a scrubbed customer utterance, one of `CUSTOMER_ACTS`.

    Its strong cues decide, then a question mark, then its weak cues; among several acts the inventory's order.
    `other` where there is no cue. Never raises on any string. More than 100,000 short utterances a second on
    one core (benchmark `scrubbing`), and more where they come back.
    """
    words = _WORD.findall(text.lower().replace("’", "'"))
    best, at, n, cues = _NOTHING_FOUND, 0, len(words), _START_CUES
    while at < n:
        word = words[at]
        step, rank = 1, _NOTHING_FOUND
        for length, cue, cue_rank in cues.get(word, ()):
            if length == 1 or tuple(words[at : at + length]) == cue:
                step, rank = length, cue_rank
                break
        if rank < best:
            best = rank
        if cues is _START_CUES and word not in _OPENERS and rank not in _GREETING_RANKS:
            cues = _CUES
        at += step
    return _ACT_BY_RANK[best]


_REPLY_TOKEN = re.compile(
    rf"<(?:{'|'.join(PLACEHOLDERS)})>|#|[^\W\d_]+(?:'[^\W\d_]+)*|\d[\d.,:]*\d|\d|\?|[$€£%]|[^\s.,;:!…\"()*~<>'_/-]"
)
_REPLY_MARKS = frozenset("#?$€£%")


@lru_cache(maxsize=_CACHED_TEXTS)
def canonical_reply(text: str) -> str | None:
    """The canonical form of a scrubbed customer utterance; None where it has none.

    Lower case, every number as `#`, placeholders kept, of punctuation only the question mark: at most
    `MAX_REPLY_TOKENS` tokens with single spaces between. It has none if it would be longer or empty, or if one of its
    words is not in the public vocabulary (`vocabulary.common_words`) or may be a given name. Idempotent.
    """
    tokens: list[str] = []
    for match in _REPLY_TOKEN.finditer(text.replace("’", "'")):
        if len(tokens) == MAX_REPLY_TOKENS:
            return None
        token = _canonical_token(match.group())
        if token is None:
            return None
        tokens.append(token)
    return " ".join(tokens) or None


def _canonical_token(token: str) -> str | None:
    if token[0].isdecimal():
        return "#"
    if token[0] == "<" or token in _REPLY_MARKS:
        return token
    lowered = token.lower()
    return lowered if lowered in _REPLY_WORDS else None


# "will" and "may" are in every second reply, and as names they are cued or capital in the middle of a sentence.
_REPLY_WORDS = common_words() - (name_words() - {"will", "may", "love", "hope", "guy", "don"})
