"""Utterance encoding: the distilled static encoder beside the transformer that it was distilled from."""

from __future__ import annotations

from orchestration.settings import load
from rl.encoders.encoder import prepare_encoder
from rl.environments.storefront_texts import utterance_table
from rl.settings import EncoderSettings
from tests.benchmarks.rows import Row, rates

STATIC_TEXTS, MINILM_TEXTS = 7_000, 200


def run() -> list[Row]:
    """Utterances a second, texts of the storefront, one thread."""
    import torch

    torch.set_num_threads(1)
    folder = load().paths.encoders
    static, _ = prepare_encoder(EncoderSettings(kind="static"), folder)
    minilm, _ = prepare_encoder(EncoderSettings(kind="minilm"), folder)
    texts = list(utterance_table().texts[:STATIC_TEXTS])
    ours, peer = rates(
        lambda: static.encode(texts),
        lambda: minilm.encode(texts[:MINILM_TEXTS]),
        ours_units=len(texts),
        peer_units=MINILM_TEXTS,
    )
    return [Row("encoding utterances (static)", ours, peer, "all-MiniLM-L6-v2", "utterances/s", ">= 50")]
