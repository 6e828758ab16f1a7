"""Reading pairs of sentences and what people say of them, by which text encoders are measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom.errors import DataError

if TYPE_CHECKING:
    from lissom.artifact import Opened
    from lissom.models.text_encoder import TextEncoder

TASK = "sts"


def is_encoder(model: str) -> bool:
    """Whether a model is a folder of transformers with a text encoder in it, or the name of one on the hub.

    Raises:
        ModelError: there is no model.
    """
    from lissom.artifact import MANIFEST
    from lissom.models.checkpoint import find
    from lissom.models.text_encoder import is_text_encoder

    return not (Path(model) / MANIFEST).is_file() and not Path(model).is_file() and is_text_encoder(find(model))


def read_pairs(file: Path | None, opened: "Opened", task: str | None, tokenizer: str | None = None) -> Any:
    """The pairs of an encoder: as its own tokenizer reads them, or that of another folder, or tokenized already.

    Raises:
        DataError: another task is asked for, or there is no file; or it cannot be read, or does not fit the model.
    """
    from lissom.models.text_encoder import TextEncoder

    if task != TASK:
        asked = f"--task {task}: " if task else ""
        raise DataError(
            f"{asked}{opened.folder} turns texts into vectors; give --task {TASK}, and as data pairs of sentences with "
            "scores (.csv, .tsv or .jsonl)"
        )
    if file is None:
        raise DataError("--data: give pairs of sentences with scores: a .csv, .tsv or .jsonl file, or tokens as .npz")
    if isinstance(opened.model, TextEncoder) and tokenizer is None:
        return pairs_for(file, opened.model, opened.folder)
    return sentence_pairs(file, opened, tokenizer)


def pairs_for(file: Path, encoder: "TextEncoder", folder: str | Path) -> Any:
    """The pairs of a text encoder that has its tokenizer with it.

    Raises:
        DataError: it has none, or the file cannot be read or does not fit the model.
    """
    from lissom.evaluate.tasks import sts

    if file.suffix != ".npz":
        if encoder.tokenizer is None:
            raise without_tokenizer(folder)
        return sts.read_for(file, encoder)
    pairs = sts.read_tokens(file)
    if pairs["input_ids"].shape[2] > encoder.longest:
        raise DataError(f"{file}: sentences of {pairs['input_ids'].shape[2]} tokens; at most {encoder.longest} fit")
    return pairs


def sentence_pairs(file: Path, opened: "Opened", tokenizer: str | None) -> Any:
    """Pairs of sentences: from a file of texts and the folder of a tokenizer, or tokenized already.

    Raises:
        DataError: there is no tokenizer, the file cannot be read, or the model takes another number of tokens.
    """
    from lissom.evaluate.tasks import sts
    from lissom.models.checkpoint import read_tokenizer

    inputs = opened.signature["inputs"] if opened.signature else []
    takes = next((given["shape"][1] for given in inputs if given["name"] == "input_ids"), -1)
    if file.suffix != ".npz":
        if tokenizer is None:
            raise without_tokenizer(opened.folder)
        return sts.read(file, read_tokenizer(Path(tokenizer)), None if takes == -1 else takes)
    pairs = sts.read_tokens(file)
    if takes not in (-1, pairs["input_ids"].shape[2]):
        raise DataError(f"{file}: sentences of {pairs['input_ids'].shape[2]} tokens, and the model takes {takes}")
    return pairs


def without_tokenizer(folder: str | Path) -> DataError:
    """What is needed to read sentences for a model that has no tokenizer."""
    return DataError(
        f"--task {TASK}: {folder} has no tokenizer; name the folder of one by --tokenizer, or give an .npz file with "
        "arrays input_ids and attention_mask [pairs, 2, tokens] and labels [pairs]"
    )


def tokens_for(encoder: "TextEncoder") -> dict[str, Any]:
    """A batch that a text encoder takes, of two texts that say nothing."""
    import torch

    from lissom.models.text_encoder import INPUTS

    return {name: torch.ones(2, min(8, encoder.longest), dtype=torch.long) for name in INPUTS}
