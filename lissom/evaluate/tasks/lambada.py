"""LAMBADA: does the model say the last word of a passage, which only the whole passage tells?

Paperno et al., ACL 2016, arXiv:1606.06031, in the form of OpenAI: a .jsonl file with a `text` in each line.
"""

from pathlib import Path
from typing import Any

from lissom.errors import DataError
from lissom.evaluate.tasks.continuation import Parts, encode
from lissom.evaluate.tasks.lines import objects


def read(file: Path, tokenizer: Any) -> Parts:
    """The passages of a file, each without and with its last word.

    Raises:
        DataError: it cannot be read, or a passage is a single word.
    """
    parted = [passage["text"].rpartition(" ") for passage in objects(file, {"text": str})]
    for context, _, word in parted:
        if not context or not word:
            raise DataError(
                f"{file}: {word!r} is no passage; each needs two words at least, and none may end in a space"
            )
    contexts = [context for context, _, _ in parted]
    return encode(tokenizer, contexts, [[" " + word] for _, _, word in parted], [0] * len(parted))
