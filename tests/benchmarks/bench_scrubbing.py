"""Scrubbing: utterances a second beside what was promised and beside Presidio, and what is found and what is lost.

Prints recall and precision by kind on both halves of our labelled test set, for each strictness of the allow-list.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from rl.encoders.customer_replies import customer_act
from rl.encoders.scrubbing import Scrubber
from rl.environments.storefront_texts import utterance_table
from rl.settings import ScrubbingSettings
from tests.benchmarks.rows import Row, rates
from tests.rl.encoders.labelled_texts import HALVES, labelled_texts, report, score

PROMISED_UTTERANCES, PROMISED_ACTS = 5_000, 100_000
PRESIDIO_TEXTS = 300


def run() -> list[Row]:
    """Texts of our labelled set, nearly all of which hold personal data; nothing is remembered between repeats."""
    for allow_list in ("none", "names", "strict"):
        scrubber = Scrubber(ScrubbingSettings(allow_list=allow_list))
        print(f"\nallow_list: {allow_list}")
        print(report({half: score(lambda text: scrubber.scrub(text).text, labelled_texts(half)) for half in HALVES}))  # noqa: B023
    print()
    texts = list(dict.fromkeys(line.text for half in HALVES for line in labelled_texts(half, per_phrasing=30)))
    customers = [t for t, act in zip(utterance_table().texts, utterance_table().act, strict=True) if act >= 0] * 20
    scrubbed = _rate(lambda: _scrub(texts), len(texts))
    rows = [
        Row("scrubbing", scrubbed, PROMISED_UTTERANCES, "what was promised", "utterances/s", ">= 1"),
        Row("acts of customers", _rate(lambda: _acts(customers), len(customers)), PROMISED_ACTS, "what was promised",
            "utterances/s", ">= 1"),
    ]  # fmt: skip
    presidio = _presidio()
    if presidio is not None:
        sample = texts[:: len(texts) // PRESIDIO_TEXTS]
        ours, peer = rates(
            lambda: _scrub(texts), lambda: presidio(sample), ours_units=len(texts), peer_units=len(sample)
        )
        rows.append(Row("scrubbing (same texts)", ours, peer, "Presidio, patterns alone", "utterances/s", ">= 1"))
    return rows


def _scrub(texts: Sequence[str]) -> None:
    scrubber = Scrubber(ScrubbingSettings())
    for text in texts:
        scrubber.scrub(text)


def _acts(texts: Sequence[str]) -> None:
    for text in texts:
        customer_act.__wrapped__(text)  # without what it remembers


def _rate(call: Callable[[], object], n_units: int) -> float:
    """Units a second of the best of three: the promise is one of an idle core."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return n_units / min(seconds)


def _presidio() -> Callable[[Sequence[str]], None] | None:
    """Presidio without a language model and without the network; None where it is not installed."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        import tldextract
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NoOpNlpEngine
    except ImportError:
        return None
    tldextract.extract = tldextract.TLDExtract(suffix_list_urls=())
    nothing = NoOpNlpEngine(models=[{"lang_code": "en", "model_name": "none"}])
    engine = AnalyzerEngine(nlp_engine=nothing, supported_languages=["en"])

    def analyze(texts: Sequence[str]) -> None:
        for text in texts:
            engine.analyze(text, language="en", score_threshold=0.4)

    return analyze
