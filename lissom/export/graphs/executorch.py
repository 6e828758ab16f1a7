"""ExecuTorch: any module as a program (.pte) for its runtime on phones and small machines.

torch.export's program is lowered: what XNNPACK has a kernel for is XNNPACK's, and the rest that of ExecuTorch's own
operators. Codes of integers are bytes in the file (codes.py), of which numbers are made as they are used. Room for all
that is computed is planned beforehand, so that there is a largest batch, and of texts a largest number of tokens.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lissom.errors import ModelError, RecipeError, reason
from lissom.export.graphs.layers import EXECUTORCH, stand
from lissom.export.graphs.program import followed, in_float32, quietly
from lissom.export.handover import Given
from lissom.files import replacing
from lissom.formats import Weight

OPTIONS = ("batch", "tokens")
BATCH, TOKENS = 16, 128  # at most, where nothing else is said; of a language model there is one text
DELEGATE = "executorch_call_delegate"


def write(
    given: Given, taken: Mapping[str, Weight], out: Path, *, batch: int | None = None, tokens: int = TOKENS
) -> dict[str, Any]:
    """One file of everything; what comes back says which operators are not XNNPACK's.

    Args:
        given: the opened model.
        taken: its weights as they are taken.
        out: the file to make.
        batch: examples at once, at most.
        tokens: of a text, at most.

    Raises:
        RecipeError: a number is out of range.
        ModelError: the package is missing, or torch.export or ExecuTorch cannot follow the module.
    """
    most = {"batch": batch or (BATCH if given.config is None else 1), "length": tokens}
    if min(most.values()) < 1:
        raise RecipeError(f"executorch: batch {most['batch']} and tokens {tokens} cannot be; give numbers from 1")
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError:
        raise ModelError(
            "executorch: needs the package executorch; install it with `pip install lissom[executorch]`"
        ) from None
    signature, model = in_float32(given, taken)
    with quietly():
        program = followed(stand(model, EXECUTORCH), signature, given, most)
        try:
            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            made = edge.to_executorch()
        except Exception as error:  # ExecuTorch raises errors of many kinds
            raise ModelError(f"{given.folder}: ExecuTorch cannot lower it ({reason(error)})") from None
    with replacing(out) as path, path.open("wb") as file:
        made.write_to_file(file)
    called = [node.target.__name__ for node in edge.exported_program().graph.nodes if node.op == "call_function"]
    counted = Counter(name.split(".")[0] for name in called if name != "getitem")
    lowered = {"parts of XNNPACK": counted.pop(DELEGATE, 0), "other operators": counted.total()}
    return {"most": most, "lowered": lowered, "others": dict(counted.most_common())}
