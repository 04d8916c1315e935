"""Our labelled test set for scrubbing: made-up lines with personal data, lines without any, and how a scrubber did.

Two halves: phrasings that the rules were written with, and held-out ones, written before the rules' second version and
never used to tune it (`labelled/*.txt`, one phrasing a line, `{NAME}` and the like where personal data goes). Values
are made up here: reserved mail domains, numbers set aside for fiction, numbers that only pass their check digits.
Names come in five sorts, since they are caught by different means: those of the word lists, those that are in none,
dictionary words (Grace, Mark), places and brands (Paris), and listed and unlisted ones written small.
"""

from __future__ import annotations

import difflib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Half = Literal["with_rules", "held_out"]
HALVES: tuple[Half, ...] = ("with_rules", "held_out")

_FOLDER = Path(__file__).parent / "labelled"
_SLOT = re.compile(r"\{([A-Z]+)\}")
_TOKEN = re.compile(r"<[A-Z]+>|\w+|[^\w\s]")

_LISTED = (
    "Anna Becker", "David Castillo", "Elena Ivanova", "Laura Hughes", "Omar Hassan", "Priya Sharma", "Sophie Martin",
    "Marcus Webb", "Helen", "Kevin", "Natasha", "Giovanni Rossi", "Brenda O'Neill", "Jean-Luc Moreau", "Ingrid Larsen",
)  # fmt: skip
_UNLISTED = (
    "Thandeka Mokoena", "Oluwaseun Adefope", "Xochitl Zamarripa", "Bjarte Skogstad", "Aoibheann Mulryan", "Tuvshin",
    "Ngozika Chukwuma", "Zdzislawa Brzozka", "Kaveh Rostamzadeh", "Siosaia Tupou", "Quyen Truong", "Ilmatar Hietanen",
)  # fmt: skip
_DICTIONARY = (
    "Grace Field",
    "Mark Stone",
    "Rose Baker",
    "Bill Carpenter",
    "April Rivers",
    "Hope",
    "Grace",
    "Mark",
    "Dawn",
)
# Places, brands and short words that are names as well.
_AMBIGUOUS = ("Austin Powell", "Chelsea", "Paris", "Georgia Moreau", "Milan", "Mercedes Ruiz", "Sydney", "Jo", "Li Wu")
NAMES = {
    "listed": _LISTED,
    "unlisted": _UNLISTED,
    "dictionary": _DICTIONARY,
    "ambiguous": _AMBIGUOUS,
    "lower-case": tuple(name.lower() for name in (*_LISTED, *_UNLISTED)),
}

_ADDRESSES = (
    "12 Long Acre Road", "6821 1st Ave", "221B Baker Street", "48 Rue de la Paix", "Hauptstraße 12", "7 Elm Court",
    "1600 Pine Boulevard, Springfield, IL 62704", "Calle Mayor 14", "90 Harbour View Terrace", "PO Box 1147",
    "33 oak lane", "SW1A 1AA",
)  # fmt: skip
_STEMS = ("ann.becker", "d_castillo", "kmoreau", "sales-42", "x.zamarripa", "o'neill", "jo", "the.lamp.lover")
_LOGINS = ("abecker", "dcast", "kmoreau", "zbrz", "thandm", "roselover")


@dataclass(frozen=True)
class LabelledText:
    """A line, and the personal data in it as (kind, value); for a name the kind says of which sort."""

    text: str
    values: tuple[tuple[str, str], ...] = ()


@dataclass
class Score:
    """How a scrubber did on labelled lines."""

    found: Counter[str] = field(default_factory=Counter)
    """Values of which no word was left, by kind."""
    total: Counter[str] = field(default_factory=Counter)
    words_removed: Counter[str] = field(default_factory=Counter)
    """Words replaced, by placeholder."""
    words_rightly: Counter[str] = field(default_factory=Counter)
    """Those of them that belong to personal data of any kind, by placeholder."""
    n_clean: int = 0
    n_altered: int = 0
    """Lines without personal data, and those of them that were changed."""

    def recall(self, kind: str) -> float:
        """Share of the values of a kind of which no word was left. `NAME` counts every sort of name."""
        kinds = [k for k in self.total if k == kind or k.startswith(f"{kind} ")]
        return sum(self.found[k] for k in kinds) / sum(self.total[k] for k in kinds)

    def precision(self, placeholder: str) -> float:
        """Share of the words that a placeholder replaced that were personal data."""
        return self.words_rightly[placeholder] / max(self.words_removed[placeholder], 1)

    @property
    def altered_share(self) -> float:
        """Share of lines without personal data that were changed."""
        return self.n_altered / self.n_clean


def labelled_texts(half: Half, per_phrasing: int = 25, seed: int = 0) -> list[LabelledText]:
    """`per_phrasing` lines for every phrasing of the half, and its lines without personal data once."""
    rng = random.Random(f"{half}|{seed}")
    lines = [_filled(phrasing, rng, n) for phrasing in _lines(f"phrasings_{half}") for n in range(per_phrasing)]
    return lines + [LabelledText(text) for text in _lines(f"clean_{half}")]


def score(scrub: Callable[[str], str], lines: Iterable[LabelledText]) -> Score:
    """Scrub every line and compare."""
    result = Score()
    for line in lines:
        scrubbed = scrub(line.text)
        if not line.values:
            result.n_clean += 1
            result.n_altered += scrubbed != line.text
        left = Counter(_TOKEN.findall(scrubbed))
        expected = Counter(_TOKEN.findall(_without(line)))
        for kind, value in line.values:
            result.total[kind] += 1
            words = [word for word in _TOKEN.findall(value) if word[0].isalnum()]
            result.found[kind] += not any(left[word] > expected[word] for word in words)
        _count_words(line, scrubbed, result)
    return result


def report(scores: dict[Half, Score]) -> str:
    """A table of recall and precision by kind, for both halves."""
    kinds = sorted({kind for scored in scores.values() for kind in scored.total})
    header = f"{'':<18}" + "".join(f"{half + ' recall':>20}{'n':>6}{'precision':>11}" for half in scores)
    rows = [header]
    for kind in ["NAME", *kinds]:
        row = f"{kind:<18}"
        for scored in scores.values():
            n = sum(count for k, count in scored.total.items() if k == kind or k.startswith(f"{kind} "))
            precision = f"{scored.precision(kind):>11.3f}" if scored.words_removed[kind] else f"{'':>11}"
            row += f"{scored.recall(kind):>20.3f}{n:>6}{precision}" if n else f"{'':>37}"
        rows.append(row)
    shares = "; ".join(f"{half} {scored.altered_share:.3f} of {scored.n_clean}" for half, scored in scores.items())
    return "\n".join([*rows, f"clean lines changed: {shares}"])


def _lines(name: str) -> list[str]:
    text = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def _filled(phrasing: str, rng: random.Random, n: int) -> LabelledText:
    values: list[tuple[str, str]] = []

    def fill(match: re.Match[str]) -> str:
        kind, value = _made_up(match[1], rng, n)
        values.append((kind, value))
        return value

    return LabelledText(_SLOT.sub(fill, phrasing), tuple(values))


def _made_up(kind: str, rng: random.Random, n: int) -> tuple[str, str]:
    if kind == "NAME":
        sort = list(NAMES)[n % len(NAMES)]
        return f"NAME {sort}", rng.choice(NAMES[sort])
    digits = "".join(rng.choices("0123456789", k=12))
    if kind == "ADDRESS":
        return kind, rng.choice(_ADDRESSES)
    if kind == "EMAIL":
        return kind, f"{rng.choice(_STEMS)}@{rng.choice(('example.com', 'mail.example.org', 'example.net'))}"
    if kind == "PHONE":
        forms = (
            "+1 202-555-01{0}",
            "(415) 555-01{0}",
            "+44 7700 900{1}",
            "07700 900{1}",
            "555-01{0}",
            "+49 30 23125{1}",
        )
        return kind, rng.choice(forms).format(digits[:2], digits[:3])
    if kind == "CARD":
        return kind, _card("400" + digits, rng.choice((" ", "", "-")))
    if kind == "IBAN":
        return kind, _iban(digits[:10])
    if kind == "NUMBER":
        return kind, rng.choice(("{0}", "AB-{1}", "{2}-{3}-{4}", "#{1}")).format(
            digits[:10], digits[:8], digits[:4], digits[4:8], digits[8:10]
        )
    return kind, rng.choice(_LOGINS) + digits[:3]


def _card(digits: str, separator: str) -> str:
    doubled = [int(d) if i % 2 else (2 * int(d) - 9 if int(d) > 4 else 2 * int(d)) for i, d in enumerate(digits)]
    text = digits + str(-sum(doubled) % 10)
    return separator.join(text[i : i + 4] for i in range(0, 16, 4))


def _iban(digits: str) -> str:
    account = f"37040044{digits}"
    check = 98 - int(f"{account}131400") % 97
    text = f"DE{check:02d}{account}"
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


def _without(line: LabelledText) -> str:
    text = line.text
    for _, value in line.values:
        text = text.replace(value, " ", 1)
    return text


def _count_words(line: LabelledText, scrubbed: str, result: Score) -> None:
    """Align the words of both texts; what was replaced counts for the placeholder that stands there."""
    before = [(m.group(), m.start()) for m in _TOKEN.finditer(line.text)]
    after = _TOKEN.findall(scrubbed)
    spans = []
    for _, value in line.values:
        start = line.text.index(value)
        spans.append((start, start + len(value)))
    matcher = difflib.SequenceMatcher(None, [word for word, _ in before], after, autojunk=False)
    for tag, low, high, low_after, high_after in matcher.get_opcodes():
        placeholders = [word[1:-1] for word in after[low_after:high_after] if word[0] == "<" and len(word) > 1]
        if tag == "equal" or not placeholders:
            continue
        for word, start in before[low:high]:
            if word[0].isalnum():
                result.words_removed[placeholders[0]] += 1
                result.words_rightly[placeholders[0]] += any(first <= start < last for first, last in spans)
