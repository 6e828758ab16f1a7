"""Text encoders: what a folder says of them, and that they say what transformers says."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

import lissom
from lissom.artifact import open_folder, open_tokenizer
from lissom.errors import ModelError
from lissom.models.text_encoder import TextEncoder, is_text_encoder

TEXTS = ("Once upon a time", "there was a very small dog who liked to run in the park")
POOLINGS: dict[str, Callable[[Any], Any]] = {
    "mean_tokens": lambda hidden: hidden.mean(0),
    "cls_token": lambda hidden: hidden[0],
    "lasttoken": lambda hidden: hidden[-1],
    "max_tokens": lambda hidden: hidden.amax(0),
}


def batch(tokenizer: Any, filling: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """The texts, filled up behind their ends."""
    texts = [tokenizer.encode(text) for text in TEXTS]
    length = max(map(len, texts)) + filling
    tokens = torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])
    return tokens, torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_what_the_folder_says(text_encoder: Any, pooling: str, normalize: bool) -> None:
    """The oracle: each text alone through transformers, and its tokens' vectors by hand."""
    folder = text_encoder(pooling, normalize=normalize)
    encoder = open_folder(folder).model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = encoder(*batch(tokenizer))
        original = BertModel.from_pretrained(folder).eval()
        for text, vector in zip(TEXTS, found, strict=True):
            hidden = original(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0]
            expected = POOLINGS[pooling](hidden)
            torch.testing.assert_close(vector, expected / expected.norm() if normalize else expected)


def test_texts_may_come_in_pairs(text_encoder: Any) -> None:
    encoder = open_folder(text_encoder()).model
    tokens, mask = batch(encoder.tokenizer)
    with torch.no_grad():
        found = encoder(torch.stack([tokens, tokens.flip(0)]), torch.stack([mask, mask.flip(0)]))
        expected = encoder(tokens, mask)
    torch.testing.assert_close(found, torch.stack([expected, expected.flip(0)]))


def test_a_compressed_encoder_needs_no_code_and_keeps_its_tokenizer(text_encoder: Any, tmp_path: Path) -> None:
    source = text_encoder()
    encoder = open_folder(source).model
    assert isinstance(encoder, TextEncoder)
    copied = copy.deepcopy(encoder)
    assert copied.tokenizer is encoder.tokenizer
    assert copied.model is not encoder.model
    recipe = [{"layers": "*", "technique": "rtn", "bits": 8}]
    inputs = batch(encoder.tokenizer)
    seen = dict(zip(("input_ids", "attention_mask"), inputs, strict=True))
    small = lissom.compress_model(encoder, [seen], steps=recipe)
    out = lissom.save(small, tmp_path / "small")
    again = lissom.save(open_folder(out).model, tmp_path / "again")
    for folder in (out, again):
        opened = open_folder(folder)
        assert isinstance(opened.model, TextEncoder)
        assert (opened.model.longest, opened.signature) == (48, encoder.signature)
        with torch.no_grad():
            assert torch.equal(opened.model(*inputs), small(*inputs))
        for tokenizer in (opened.model.tokenizer, open_tokenizer(folder)):
            assert [tokenizer.encode(text) for text in TEXTS] == [encoder.tokenizer.encode(text) for text in TEXTS]
    with torch.no_grad():
        assert torch.nn.functional.cosine_similarity(small(*inputs), encoder(*inputs)).min() > 0.99
    before, after = (sum(file.stat().st_size for file in f.glob("*.safetensors")) for f in (source, out))
    assert after < 0.4 * before


def test_what_a_folder_says_and_is_not_known_is_refused(text_encoder: Any) -> None:
    folder = text_encoder("nothing")
    with pytest.raises(ModelError, match="makes vectors by nothing; possible are"):
        open_folder(folder)
    parts = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*parts, {**parts[0], "type": "some.models.Dense"}]))
    with pytest.raises(ModelError, match=r"Normalize, Dense; possible are Transformer, Pooling, Normalize"):
        open_folder(folder)


def test_folders_without_parts_are_told_by_their_class(text_encoder: Any, demo_folder: Path) -> None:
    folder = text_encoder()
    (folder / "modules.json").unlink()
    (folder / "sentence_bert_config.json").unlink()
    encoder = open_folder(folder).model
    assert isinstance(encoder, TextEncoder)
    assert (encoder.pooling, encoder.normalize, encoder.longest) == ("mean", False, 64)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))
    assert not is_text_encoder(folder)
    assert not is_text_encoder(demo_folder)
    with pytest.raises(ModelError, match="pooling 'sum' is not possible"):
        TextEncoder(BertModel(BertConfig(num_hidden_layers=1)), pooling="sum", longest=8)
