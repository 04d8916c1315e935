"""The personal data planted in the sample dialogues of ABCD: each item found or missed, by kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rl.encoders.scrubbing import Scrubber, scrubber_for
from rl.settings import ScrubbingSettings

MISSED: dict[str, set[str]] = {"names": set(), "strict": set()}
"""What the rules do not find, by allow-list. Nothing, so far."""


@pytest.mark.parametrize("allow_list", ["names", "strict"])
def test_each_planted_item_is_found_or_known_to_be_missed(allow_list: str, shared_data: Path) -> None:
    items = planted(shared_data)
    found = {item: is_found(item, text, scrubber_for(ScrubbingSettings(allow_list=allow_list))) for item, text in items}

    by_kind: dict[str, list[bool]] = {}
    for (kind, _), hit in found.items():
        by_kind.setdefault(kind, []).append(hit)
    assert {kind: len(hits) for kind, hits in by_kind.items()} == {
        "customer_name": 2, "email": 2, "phone": 1, "username": 2, "order_id": 2,
    }  # fmt: skip
    assert {value for (_, value), hit in found.items() if not hit} == MISSED[allow_list]


def planted(shared_data: Path) -> list[tuple[tuple[str, str], str]]:
    """((kind, value), the dialogue's turns) for every item of a scenario that its dialogue speaks out."""
    dialogues = json.loads((shared_data / "abcd_sample" / "abcd_sample.json").read_text())
    items = []
    for dialogue in dialogues:
        text = "\n".join(text for _, text in dialogue["original"])
        scenario = dialogue["scenario"]["personal"] | dialogue["scenario"]["order"]
        for kind in ("customer_name", "email", "phone", "username", "order_id"):
            value = scenario.get(kind, "")
            if value and value.lower() in text.lower():
                items.append(((kind, value), text))
    return items


def is_found(item: tuple[str, str], text: str, scrubber: Scrubber) -> bool:
    """Whether no turn keeps the value, or a word of a name."""
    kind, value = item
    left = "\n".join(scrubber.scrub(turn).text for turn in text.split("\n")).lower()
    parts = value.split() if kind == "customer_name" else [value]
    return not any(re.search(rf"(?<!\w){re.escape(part.lower())}(?!\w)", left) for part in parts)


def test_of_the_bare_small_records_behind_the_dialogues_some_words_stay(shared_data: Path) -> None:
    """`crystal minh` without capitals or cue, `75227` alone: what no rule of ours can tell from other words."""
    scrubber = scrubber_for(ScrubbingSettings())
    left: dict[str, list[str]] = {}
    for dialogue in json.loads((shared_data / "abcd_sample" / "abcd_sample.json").read_text()):
        scenario = dialogue["scenario"]["personal"] | dialogue["scenario"]["order"]
        for kind in ("customer_name", "email", "phone", "username", "order_id", "full_address", "zip_code"):
            words = set(scrubber.scrub(scenario.get(kind, "")).text.split())
            left.setdefault(kind, []).extend(sorted(words & set(scenario.get(kind, "").split())))

    assert {kind: words for kind, words in left.items() if words} == {
        "customer_name": ["crystal", "phoenix", "wu"],
        "zip_code": ["75227", "86229", "14573"],
    }
