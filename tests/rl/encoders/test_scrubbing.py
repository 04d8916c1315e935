"""The scrubber: known answers per kind, and the properties that hold for any text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.encoders.scrubbing import scrub
from rl.environments.sample_flaws import personal_remark


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jo.doe+shop@mail.example.com please", "write to <EMAIL> please"),
        ("call +44 20 7946 0958 today", "call <PHONE> today"),
        ("call (415) 555-0132 today", "call <PHONE> today"),
        ("card 4111 1111 1111 1111 ok", "card <CARD> ok"),
        ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN <IBAN>."),
        ("order 4711 is late", "order <NUMBER> is late"),
        ("my order AB-12345678 is late", "my order <NUMBER> is late"),
        ("your order number 1234-5678-90 here", "your order number <NUMBER> here"),
        ("see https://shop.example/a?b=1 now", "see <URL> now"),
        ("My name is Ada Lovelace, hello", "My name is <NAME>, hello"),
        ("my name is ada", "my name is <NAME>"),
        ("Hi, I'm Grace and I want a lamp", "Hi, I'm <NAME> and I want a lamp"),
        ("this is Jean-Luc O'Brien", "this is <NAME>"),
        ("send it to 12 Long Acre Road, thanks", "send it to <ADDRESS>, thanks"),
        ("Hauptstraße 12, bitte", "<ADDRESS>, bitte"),
    ],
)
def test_each_kind_of_personal_data_is_replaced(text: str, expected: str) -> None:
    scrubbed = scrub(text)

    assert scrubbed.text == expected
    assert sum(scrubbed.counts.values()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "The lamp costs 49.90 euros, the chair 1,200.",
        "I'm Happy with it. This is Great!",
        "It came out in 1999 and lasts 142 minutes.",
        "Between 500 and 1000 dollars on 2026-11-20 at 10:30.",
        "From 2019-2020 on, 10-12 pieces a day",
        "I am looking for a size 42",
        "Dear Sir, I'm American",
    ],
)
def test_sizes_prices_dates_and_common_words_stay(text: str) -> None:
    assert scrub(text).text == text


def test_personal_data_planted_in_the_sample_logs_does_not_survive() -> None:
    rng = np.random.default_rng(0)
    remarks = [personal_remark(rng, speaker) for speaker in ("agent", "customer") for _ in range(500)]

    assert [text for text, value in remarks if value in scrub(f"Thanks. {text} Bye!").text] == []


def test_counts_name_what_was_replaced() -> None:
    assert dict(scrub("a@b.example and c@d.example, I'm Ada").counts) == {"EMAIL": 2, "NAME": 1}


@given(st.text())
def test_scrubbing_twice_changes_nothing_more(text: str) -> None:
    once = scrub(text).text

    assert scrub(once).text == once


_PIECES = st.sampled_from(
    ["my name is ", "I'm ", "Ada ", "<NAME> ", "+49 30 901820", "4111 1111 1111 1111", "@", "a.b", "12 ", "-", " ",
     "Main Road", "http://x", "order ", "123456", "DE89370400440532013000", ".", "(", "555-1234", "dear ", "Grace"]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=12).map("".join))
def test_scrubbing_twice_changes_nothing_more_on_text_made_of_triggers(text: str) -> None:
    once = scrub(text).text

    assert scrub(once).text == once


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ,.!?", max_size=80))
def test_text_without_digits_marks_and_cues_is_unchanged(text: str) -> None:
    cues = ("name", "i m", "i am", "im", "this is", "call me", "speaking", "dear", "www.")
    if not any(cue in text for cue in cues):
        assert scrub(text).text == text
