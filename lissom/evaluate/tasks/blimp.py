"""BLiMP: of two sentences that hardly differ, does the model find the grammatical one likelier?

Warstadt et al., TACL 2020, arXiv:1912.00582: one .jsonl file for each of 67 paradigms, or a folder of them.
"""

from pathlib import Path
from typing import Any

from lissom.evaluate.tasks.continuation import Parts, encode
from lissom.evaluate.tasks.lines import objects


def read(file: Path, tokenizer: Any) -> Parts:
    """The pairs of a file or a folder, the good sentence first.

    Raises:
        DataError: it cannot be read.
    """
    pairs = objects(file, {"sentence_good": str, "sentence_bad": str})
    sentences = [[pair["sentence_good"], pair["sentence_bad"]] for pair in pairs]
    return encode(tokenizer, [""] * len(pairs), sentences, [0] * len(pairs))
