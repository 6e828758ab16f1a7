"""A text encoder: a model of transformers that turns texts into vectors, with what its folder says of how.

As sentence-transformers writes folders (Reimers, Gurevych, EMNLP 2019, arXiv:1908.10084): `modules.json` names the
parts, of which the second makes one vector of those of the tokens, and a third may scale that to length 1.

Shapes: n texts, t tokens of each with padding, h hidden.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lissom.errors import ModelError
from lissom.files import read_json

PARTS, LIMITS = "modules.json", "sentence_bert_config.json"
KNOWN = ("Transformer", "Pooling", "Normalize")
POOLINGS = ("mean", "cls", "lasttoken", "max")
ENCODERS = ("albert", "bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
INPUTS = ("input_ids", "attention_mask")


class TextEncoder(nn.Module):
    """Tokens of texts to their vectors.

    Args:
        model: gives `last_hidden_state` [n, t, h] for `input_ids` and `attention_mask`.
        pooling: "mean" of the tokens' vectors, the "max" of each feature, or that of the first ("cls") or the last one.
        normalize: whether vectors are scaled to length 1.
        longest: tokens of a text, at most, with those that it begins and ends with.
        tokenizer: what makes tokens of texts, with `encode`.

    Raises:
        ModelError: there is no such pooling.
    """

    def __init__(
        self, model: nn.Module, *, pooling: str = "mean", normalize: bool = False, longest: int, tokenizer: Any = None
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ModelError(f"pooling {pooling!r} is not possible; choose {', '.join(POOLINGS)}")
        self.model = model
        self.pooling, self.normalize, self.longest, self.tokenizer = pooling, normalize, longest, tokenizer

    def __deepcopy__(self, memo: dict[int, Any]) -> "TextEncoder":
        """Another with the same tokenizer, which nobody changes, and which is slow to copy."""
        memo[id(self.tokenizer)] = self.tokenizer
        found = memo[id(self)] = type(self).__new__(type(self))
        found.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return found

    def forward(self, input_ids: Int[Tensor, "*n t"], attention_mask: Int[Tensor, "*n t"]) -> Float[Tensor, "*n h"]:
        """The vectors of texts, which may come in groups, such as pairs; `attention_mask` is 1 for tokens and 0 for
        what fills up behind them.
        """
        if input_ids.dim() > 2:
            flat: Tensor = self(input_ids.flatten(0, -2), attention_mask.flatten(0, -2))
            grouped: Tensor = flat.unflatten(0, input_ids.shape[:-1])
            return grouped
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        if self.pooling == "mean":
            vectors = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        elif self.pooling == "max":
            vectors = hidden.masked_fill(mask == 0, -torch.inf).amax(1)
        elif self.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            last = attention_mask.sum(1) - 1
            vectors = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    @property
    def told(self) -> dict[str, Any]:
        """What makes another one of the same form, as JSON holds it."""
        config: Any = self.model.config
        how = {"pooling": self.pooling, "normalize": self.normalize, "longest": self.longest}
        return {"config": json.loads(config.to_json_string(use_diff=True)), **how}

    @property
    def signature(self) -> dict[str, Any]:
        """What goes in and out, in the words of the Open Inference Protocol."""
        config: Any = self.model.config
        inputs = [{"name": name, "datatype": "INT64", "shape": [-1, -1]} for name in INPUTS]
        return {
            "inputs": inputs,
            "outputs": [{"name": "embeddings", "datatype": "FP32", "shape": [-1, config.hidden_size]}],
        }

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "TextEncoder":
        """One of the form that another told of, with weights that say nothing."""
        from transformers import AutoConfig, AutoModel

        how = dict(told)
        config = AutoConfig.for_model(**how.pop("config"))
        return cls(without_pooler(AutoModel.from_config(config)), **how).eval()

    @classmethod
    def read(cls, folder: Path) -> "TextEncoder":
        """The encoder of a folder, in float32.

        Raises:
            ModelError: it cannot be read, or has parts that are not known here.
        """
        from transformers import AutoModel

        from lissom.models.checkpoint import read_tokenizer

        how = pooled(folder)
        try:
            model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} cannot be read as a text encoder: {error}") from None
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions and model.config.model_type in ("camembert", "roberta", "xlm-roberta", "mpnet"):
            positions -= model.config.pad_token_id + 1  # their positions begin behind that of padding
        longest = min(told for told in (limit(folder), positions, 2**20) if told)
        return cls(without_pooler(model), longest=longest, tokenizer=read_tokenizer(folder), **how).eval()


def is_text_encoder(folder: Path) -> bool:
    """Whether a folder of transformers holds an encoder of texts, and no language model or classifier."""
    if (folder / PARTS).is_file():
        return True
    config = read_json(folder / "config.json")
    named = config.get("architectures") or [""]
    return config.get("model_type") in ENCODERS and str(named[0]).endswith(("Model", "ForMaskedLM"))


def pooled(folder: Path) -> dict[str, Any]:
    """How one vector is made of those of tokens: as the folder says, or else their mean.

    Raises:
        ModelError: it says what is not known here.
    """
    if not (folder / PARTS).is_file():
        return {"pooling": "mean", "normalize": False}
    parts = json.loads((folder / PARTS).read_text(encoding="utf-8"))
    names = [str(part["type"]).rpartition(".")[2] for part in parts]
    if names[:2] != list(KNOWN[:2]) or not set(names) <= set(KNOWN):
        raise ModelError(f"{folder}: {PARTS} has the parts {', '.join(names)}; possible are {', '.join(KNOWN)}")
    return {
        "pooling": pooling_of(read_json(folder / parts[1]["path"] / "config.json"), folder),
        "normalize": "Normalize" in names,
    }


def pooling_of(config: Mapping[str, Any], folder: Path) -> str:
    """The pooling that a config names; of several, whose vectors would be joined, none is possible.

    Raises:
        ModelError: it names none that is known here, or several.
    """
    modes = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "lasttoken",
        "pooling_mode_max_tokens": "max",
    }
    chosen = [modes.get(name, name) for name, on in config.items() if name.startswith("pooling_mode_") and on is True]
    named = config.get("pooling_mode") or chosen
    several: Sequence[str] = [named] if isinstance(named, str) else named
    if len(several) != 1 or several[0] not in POOLINGS:
        raise ModelError(f"{folder} makes vectors by {', '.join(several) or 'nothing'}; possible are {POOLINGS}")
    return several[0]


def limit(folder: Path) -> int | None:
    """How many tokens a text may have, where the folder says it."""
    found = read_json(folder / LIMITS).get("max_seq_length") if (folder / LIMITS).is_file() else None
    return None if found is None else int(found)


def without_pooler(model: Any) -> nn.Module:
    """The model without a pooler of its own, which no text encoder uses."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    found: nn.Module = model
    return found
