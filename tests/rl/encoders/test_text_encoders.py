"""MiniLM and the static encoder: the pinned weights, the vectors, storing and loading."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from rl.encoders import minilm, static
from rl.encoders.encoder import encoder_folder, load_encoder, prepare_encoder
from rl.encoders.minilm import MiniLMEncoder, check_weights, find_model
from rl.encoders.static import StaticEncoder
from rl.errors import EncoderError
from rl.settings import EncoderSettings

SENTENCES = ("The laptop is too expensive for me.", "That computer costs too much.", "I like walking in the rain.")


@pytest.fixture(scope="module")
def transformer() -> MiniLMEncoder:
    return MiniLMEncoder(find_model(), 384)


@pytest.fixture
def words() -> StaticEncoder:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, "blue": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return StaticEncoder(np.array([[9, 9], [3, 0], [0, 1]], dtype=np.float16), tokenizer, "test")


def cosines(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors @ vectors.T


def test_minilm_gives_the_published_similarities(transformer: MiniLMEncoder) -> None:
    # The example of the model's own page: "That is a happy person" against two other sentences.
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day"]
    similar = cosines(transformer.encode(texts))[0]
    np.testing.assert_allclose(similar[1:], [0.695, 0.943, 0.257], atol=0.002)


def test_minilm_vectors_have_unit_length_and_keep_the_order_of_texts(transformer: MiniLMEncoder) -> None:
    texts = [*SENTENCES, "Yes."]
    together = transformer.encode(texts)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    alone = np.concatenate([transformer.encode([text]) for text in texts])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_fewer_minilm_dimensions_keep_who_is_similar_to_whom(transformer: MiniLMEncoder) -> None:
    small = MiniLMEncoder(find_model(), 64)
    similar = cosines(small.encode(SENTENCES))
    assert similar[0, 1] > 0.5 > similar[0, 2]


def test_a_stored_minilm_loads_the_same_without_a_second_copy_of_the_weights(tmp_path: Path) -> None:
    encoder, folder = prepare_encoder(EncoderSettings(kind="minilm", dimensions=64), tmp_path)
    assert folder == encoder_folder(EncoderSettings(kind="minilm", dimensions=64), tmp_path)
    assert [path.name for path in folder.iterdir()] == ["encoder.json"]
    np.testing.assert_array_equal(encoder.encode(SENTENCES), load_encoder(folder).encode(SENTENCES))


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(EncoderError, match=r"has sha256 .* from a source you trust"):
        check_weights(tmp_path / "model.safetensors", minilm.WEIGHTS_SHA256)


def test_a_source_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"has no model\.safetensors"):
        find_model(str(tmp_path))


def test_more_dimensions_than_the_model_has_are_refused() -> None:
    with pytest.raises(EncoderError, match="the model has 384"):
        MiniLMEncoder(find_model(), 512)


def test_the_id_names_kind_dimensions_and_weights() -> None:
    ids = {static.identify(EncoderSettings(dimensions=d)) for d in (32, 64)}
    ids.add(minilm.identify(EncoderSettings(kind="minilm")))
    assert len(ids) == 3
    assert {name.rsplit("-", 1)[0] for name in ids} == {"static-32", "static-64", "minilm-64"}
    assert static.identify(EncoderSettings(batch_size=1)) == static.identify(EncoderSettings())


def test_a_static_vector_is_the_mean_of_the_known_tokens_at_unit_length(words: StaticEncoder) -> None:
    vectors = words.encode(["red blue", "martian", "", "blue martian"])
    expected = [[3 / np.sqrt(10), 1 / np.sqrt(10)], [0, 0], [0, 0], [0, 1]]
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)


def test_a_stored_static_encoder_loads_the_same(words: StaticEncoder, tmp_path: Path) -> None:
    words.save(tmp_path / "e")
    loaded = load_encoder(tmp_path / "e")
    assert loaded.encoder_id == words.encoder_id
    np.testing.assert_array_equal(loaded.encode(["red blue"]), words.encode(["red blue"]))


def test_loading_a_static_encoder_imports_neither_torch_nor_transformers(words: StaticEncoder, tmp_path: Path) -> None:
    words.save(tmp_path / "e")
    code = (
        "import sys; from pathlib import Path; from rl.encoders.encoder import load_encoder\n"
        "load_encoder(Path(sys.argv[1])).encode(['red'])\n"
        "sys.exit(len({'torch', 'transformers', 'model2vec'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "e")], check=False).returncode == 0


def test_a_damaged_or_foreign_encoder_folder_is_refused(words: StaticEncoder, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="There is no encoder in"):
        load_encoder(tmp_path)
    words.save(tmp_path / "e")
    description = json.loads((tmp_path / "e" / "encoder.json").read_text())
    (tmp_path / "e" / "encoder.json").write_text(json.dumps(description | {"revision": "other"}))
    with pytest.raises(EncoderError, match="was saved as"):
        load_encoder(tmp_path / "e")
    (tmp_path / "e" / "vectors.safetensors").write_bytes(b"cut")
    with pytest.raises(EncoderError, match="cannot be read"):
        load_encoder(tmp_path / "e")


@pytest.mark.slow
def test_the_distilled_encoder_ranks_sentences_as_minilm_does(tmp_path: Path) -> None:
    encoder, folder = prepare_encoder(EncoderSettings(dimensions=256), tmp_path)
    similar = cosines(encoder.encode(SENTENCES))
    assert similar[0, 1] > similar[0, 2]
    np.testing.assert_allclose(load_encoder(folder).encode(SENTENCES), encoder.encode(SENTENCES))
