"""A tokenizer as GGUF tells it: pieces, their kinds, merges or scores, and how text is split before.

llama.cpp has tokenizers of its own: byte-level BPE ("gpt2"), whose ways to split text it knows by name, and BPE over
pieces in which "▁" is a space, with bytes for what no piece has ("llama").
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lissom.errors import ModelError
from lissom.models.llamacpp import SPLITS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What a GGUF says of a tokenizer."""

    model: str
    split: str
    pieces: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    special: Mapping[str, int]
    begins: bool
    ends: bool
    space_before: bool
    template: str | None


def vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """That of a tokenizer, filled up to the `size` of the embedding.

    Raises:
        ModelError: llama.cpp has no such tokenizer.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    model = told["model"]
    if model["type"] != "BPE":
        raise ModelError(f"gguf: a tokenizer of the kind {model['type']} is not written; BPE is")
    added = {entry["id"]: entry for entry in told["added_tokens"]}
    names = {number: piece for piece, number in model["vocab"].items()}
    names |= {number: entry["content"] for number, entry in added.items()}
    pieces = [names.get(number, f"[PAD{number}]") for number in range(size)]
    marks = [tokenizer.encode(text, add_special_tokens=True) for text in ("", "a")]
    plain = tokenizer.encode("a", add_special_tokens=False)
    bytewise = not model.get("byte_fallback")
    before = json.dumps([told.get("normalizer"), told.get("pre_tokenizer")]).lower()
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk", "pad")}
    return Vocabulary(
        model="gpt2" if bytewise else "llama",
        split=split_of(told) if bytewise else "default",
        pieces=pieces,
        kinds=list(kinds(pieces, names, added, model)),
        merges=[" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]] if bytewise else [],
        scores=[] if bytewise else [float(-number) for number in range(size)],
        special={name: number for name, number in ids.items() if number is not None},
        begins=marks[1][:1] != plain[:1] and bool(marks[0]),
        ends=marks[1][-1:] != plain[-1:],
        space_before=not bytewise and "prepend" in before,
        template=tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def kinds(
    pieces: list[str], names: Mapping[int, str], added: Mapping[int, Mapping[str, Any]], model: Mapping[str, Any]
) -> Iterator[int]:
    """The kind of each piece."""
    for number, piece in enumerate(pieces):
        if number not in names:
            yield UNUSED
        elif piece == model.get("unk_token"):
            yield UNKNOWN
        elif number in added:
            yield CONTROL if added[number]["special"] else USER_DEFINED
        elif model.get("byte_fallback") and piece.startswith("<0x") and len(piece) == 6:
            yield BYTE
        else:
            yield NORMAL


def split_of(told: Mapping[str, Any]) -> str:
    """llama.cpp's name for how text is split.

    Raises:
        ModelError: none is known.
    """
    before = told.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    if [step.get("type") for step in steps] == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if [step.get("type") for step in steps] == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    splits = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    if len(splits) == 1 and splits[0] in SPLITS:
        return SPLITS[splits[0]]
    raise ModelError(
        f"gguf: text is split by {[step.get('type') for step in steps]} {splits}, for which no name of llama.cpp is "
        f"known; known are gpt-2, smollm, {', '.join(SPLITS.values())}"
    )
