"""The plug-in named-entity model: the real loading code, on a tiny model with random weights and on a stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from rl.catalogue import ActionCatalogue, Strategy
from rl.encoders.dialogue import DialogueContext, DialogueEncoder, DialogueTurn
from rl.encoders.entity_model import EntityModel, find_entity_model
from rl.encoders.scrubbing import Scrubber, scrubber_for
from rl.encoders.static import StaticEncoder
from rl.errors import DataError, EncoderError
from rl.settings import ScrubbingSettings

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "lamp", "is", "from", "zyx", "please", "<", ">", "name"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("entities") / "model")


def tiny_model(folder: Path, seed: int = 0) -> Path:
    """A token-classification model of two labels, saved as transformers saves one. Everything is a person to it."""
    import torch
    from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast

    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=64, id2label={0: "O", 1: "B-PER"}, label2id={"O": 0, "B-PER": 1},
    )  # fmt: skip
    network = BertForTokenClassification(config)
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(torch.tensor([-4.0, 4.0]))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(model: Path, **changes: Any) -> ScrubbingSettings:
    return ScrubbingSettings(entity_model=str(model), **changes)


def test_the_model_sees_what_the_rules_left_and_placeholders_stay(model: Path) -> None:
    texts = ["12 <NAME> 34", "the lamp is from zyx", "please a@b.example", ""]

    scrubbed = scrubber_for(settings(model)).scrub_all(texts)

    assert [found.text for found in scrubbed] == ["12 <NAME> 34", "<NAME>", "<NAME> <EMAIL>", ""]
    assert dict(scrubbed[2].counts) == {"EMAIL": 1, "NAME": 1}


def test_one_text_and_a_batch_give_the_same(model: Path) -> None:
    scrubber = scrubber_for(settings(model))
    texts = ["the lamp", "please", "is the lamp from zyx please"]

    assert [scrubber.scrub(text).text for text in texts] == [found.text for found in scrubber.scrub_all(texts)]


def test_the_version_names_the_weights_and_not_the_folder(model: Path, tmp_path: Path) -> None:
    same = tmp_path / "same"
    same.mkdir()
    for path in model.iterdir():
        (same / path.name).write_bytes(path.read_bytes())
    other = tiny_model(tmp_path / "other", seed=1)

    versions = [Scrubber(settings(folder)).version for folder in (model, same, other)]

    assert versions[0] == versions[1] != versions[2]
    assert versions[0] != Scrubber(ScrubbingSettings()).version


def test_a_stored_scrubber_brings_its_model(model: Path, tmp_path: Path) -> None:
    scrubber = scrubber_for(settings(model))
    scrubber.save_model(tmp_path)
    stored = json.loads(json.dumps(scrubber.to_json()))

    loaded = Scrubber.from_json(stored, tmp_path)
    assert loaded.settings.entity_model == str(tmp_path / "entity_model")
    assert loaded.scrub("the lamp").text == "<NAME>"

    (tmp_path / "entity_model" / "model.safetensors").unlink()
    with pytest.raises((EncoderError, DataError), match=r"has no model\.safetensors"):
        Scrubber(loaded.settings).scrub("the lamp")


def test_a_missing_model_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EncoderError, match=r"has no model\.safetensors.*or leave it empty to scrub by rules alone"):
        find_entity_model(str(tmp_path))
    with pytest.raises(EncoderError, match=r"no folder.*needs `scrubbing\.entity_revision`"):
        find_entity_model("someone/some-model")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r"neither a folder nor a model that the hub could give"):
        find_entity_model("someone/some-model", "0" * 40)


def test_another_model_than_the_pinned_one_is_refused(model: Path) -> None:
    sha256 = find_entity_model(str(model)).sha256

    assert find_entity_model(str(model), sha256[:12]).sha256 == sha256
    with pytest.raises(EncoderError, match=r"`scrubbing\.entity_revision` is 'ffffffffffff'"):
        find_entity_model(str(model), "f" * 64)


def test_a_model_that_knows_none_of_the_labels_is_refused(model: Path) -> None:
    with pytest.raises(EncoderError, match=r"tells O, PER; `scrubbing\.entity_labels` names none of them"):
        Scrubber(settings(model, entity_labels={"LOC": "ADDRESS"})).scrub("the lamp")


def test_only_sure_entities_of_the_labels_are_replaced(tmp_path: Path) -> None:
    def pipeline(texts: list[str], batch_size: int) -> list[list[dict[str, Any]]]:
        return [
            [
                {"entity_group": "PER", "score": 0.9, "start": 0, "end": 3},
                {"entity_group": "LOC", "score": 0.9, "start": 8, "end": 14},
                {"entity_group": "PER", "score": 0.2, "start": 15, "end": 18},
                {"entity_group": "PER", "score": 0.9, "start": 20, "end": 24},
            ]
            for _ in texts
        ]

    model = EntityModel(tmp_path, "0", pipeline, {"PER": "NAME"}, 0.5)

    assert model.replace(["Ada and Berlin Bob <EMAIL>"]) == [("<NAME> and Berlin Bob <EMAIL>", {"NAME": 1})]


def test_live_text_is_scrubbed_with_the_model_of_the_data_set(model: Path, tmp_path: Path) -> None:
    words = {"[UNK]": 0, "<": 1, "NAME": 2, ">": 3, "lamp": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    catalogue = ActionCatalogue((Strategy("greet", "", 1, "fallback"),))
    static = StaticEncoder(np.eye(5, dtype=np.float16), tokenizer, "test")
    made = DialogueEncoder(static, catalogue, ("new",), 10, 2, scrubber_for(settings(model)))
    made.save(tmp_path / "saved")

    loaded = DialogueEncoder.load(tmp_path / "saved")

    assert loaded.scrubber.version == made.scrubber.version
    states = [
        loaded.observe([DialogueContext(turns=(DialogueTurn(speaker="customer", text=text),))])[0].state
        for text in ("the lamp is from zyx", "<NAME>")
    ]
    np.testing.assert_array_equal(*states)


def test_an_encoder_of_an_older_scrubber_is_not_served(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    static = StaticEncoder(np.eye(1, dtype=np.float16), tokenizer, "test")
    DialogueEncoder(static, ActionCatalogue((Strategy("greet", "", 1, "fallback"),)), (), 10, 2).save(tmp_path)
    stored = json.loads((tmp_path / "dialogue.json").read_text())
    del stored["scrubber"]
    (tmp_path / "dialogue.json").write_text(json.dumps(stored))

    with pytest.raises(DataError, match="Build the data set again"):
        DialogueEncoder.load(tmp_path)
