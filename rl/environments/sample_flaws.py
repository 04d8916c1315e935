"""What real logs have and a simulator lacks: personal data in the text, and records that are broken.

Here: made-up remarks and the ways to damage a record. Not here: where they are planted (`sample_logs`).

Everything is invented: reserved mail domains, telephone numbers set aside for fiction, card numbers that only
pass the check digit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

PLANTED_SHARE = 0.035
"""Share of turns whose text has a piece of personal data added."""
MALFORMED_SHARE = 0.003
"""Share of records that are damaged; at most one in a dialogue."""

_FIRST = (
    "Anna",
    "Ben",
    "Chloe",
    "David",
    "Elena",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jonas",
    "Karim",
    "Leonie",
)
_LAST = (
    "Ashworth",
    "Becker",
    "Castillo",
    "Dubois",
    "Eriksen",
    "Fontaine",
    "Garland",
    "Hartmann",
    "Ivanova",
    "Jansen",
)
_CUSTOMER_REMARKS = {
    "email": ("My e-mail is {}.", "You can write to {}."),
    "phone": ("Call me on {}.", "My number is {}."),
    "card": ("My card number is {}.", "Charge it to {} please."),
    "name": ("My name is {}.", "my name is {}, by the way."),
    "order": ("It is about order number {}.", "My last order was {}."),
}
_AGENT_REMARKS = {
    "email": ("I have noted {} as your e-mail.",),
    "phone": ("We can call you on {}.",),
    "order": ("I see your order number {} here.",),
}


def personal_remark(rng: np.random.Generator, speaker: str) -> tuple[str, str]:
    """A sentence with made-up personal data, and the personal data in it."""
    remarks = _AGENT_REMARKS if speaker == "agent" else _CUSTOMER_REMARKS
    kinds = tuple(remarks)
    kind = kinds[int(rng.integers(len(kinds)))]
    value = _personal_value(rng, kind)
    return remarks[kind][int(rng.integers(len(remarks[kind])))].format(value), value


def damaged(record: dict[str, Any], rng: np.random.Generator) -> bytes:
    """The record as a line that no reader may accept: cut short, or with one field missing or impossible.

    The dialogue's id stays readable, so that its dialogue can be told incomplete.
    """
    ways = ["cut", "occurred_at missing", "occurred_at"]
    if record["record"] == "turn":
        ways += ["speaker missing", "speaker", "text"]
    if "propensity" in record:
        ways += ["propensity", "strategies"]
    way = ways[int(rng.integers(len(ways)))]
    if way == "cut":
        line = orjson.dumps(record)
        return line[: int(rng.integers(len(line) // 2, len(line) - 1))]
    name, _, missing = way.partition(" ")
    if missing:
        return orjson.dumps({key: value for key, value in record.items() if key != name})
    return orjson.dumps(record | {name: _IMPOSSIBLE[name]})


_IMPOSSIBLE: dict[str, Any] = {
    "occurred_at": "yesterday, half past two",
    "speaker": "supervisor",
    "text": None,
    "propensity": 1.7,
    "strategies": ["hard_sell"],
}


def _personal_value(rng: np.random.Generator, kind: str) -> str:
    first, last = _FIRST[int(rng.integers(len(_FIRST)))], _LAST[int(rng.integers(len(_LAST)))]
    digits = rng.integers(10, size=12).tolist()
    if kind == "email":
        return f"{first}.{last}{digits[0]}{digits[1]}@example.{('com', 'org', 'net')[digits[2] % 3]}".lower()
    if kind == "phone":
        last_three = "".join(map(str, digits[:3]))
        return (f"+44 7700 900{last_three}", f"+1 202-555-01{last_three[:2]}", f"07700 900{last_three}")[digits[3] % 3]
    if kind == "card":
        return _card_number([4, 0, 0, *digits])
    if kind == "order":
        return "{}{}{}{}-{}{}{}{}-{}{}".format(*digits)
    return f"{first} {last}"


def _card_number(digits: list[int]) -> str:
    """Fifteen digits and their Luhn check digit, in groups of four."""
    doubled = [d if i % 2 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(digits)]
    text = "".join(map(str, [*digits, -sum(doubled) % 10]))
    return " ".join(text[i : i + 4] for i in range(0, 16, 4))
