"""What serving models would take and how fast they could be at most, said before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lissom.files import read_json

if TYPE_CHECKING:
    from lissom.hardware import Limits
    from lissom.server import FolderService

# Without PyTorch: another process has it while it puts the model together, before keys and values come.
# Bytes of the process of the server, and of that of each model beside it, with PyTorch and without (docs/log.md).
SERVER, ENGINE, ALONE = 90_000_000, 250_000_000, 60_000_000
WIDTHS = {"float": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}  # bytes of a number in the cache, without scales
SCALES = {"int8": 2.0, "int4": 4.0}  # bytes of them for each token and head


def foresee(services: "Sequence[FolderService]") -> tuple[list[dict[str, Any]], int, int]:
    """What is foreseen of each model, the bytes that all would take, and those that there are.

    Raises:
        ModelError: there is no model in a folder.
    """
    from lissom.hardware import available_bytes, limits

    can = limits(0.3)
    rows = [foreseen(service, can) for service in services]
    return rows, SERVER + sum(int(row["bytes"]) for row in rows), available_bytes()


def foreseen(service: "FolderService", can: "Limits") -> dict[str, Any]:
    """Of one model: bytes of its weights, of its cache and of all, and tokens a second of one sequence at most."""
    from lissom.artifact import MANIFEST
    from lissom.artifact.tensors import payload
    from lissom.engine.build import alone
    from lissom.models.checkpoint import find
    from lissom.models.text_encoder import is_text_encoder

    folder = Path(service.folder)
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    folder = folder if manifest else find(folder)
    weights = sum(payload(file) for file in folder.glob("*.safetensors"))
    if manifest.get("kind") == "module" or (not manifest and is_text_encoder(folder)):
        return {"model": service.name, "weights": weights, "bytes": ENGINE + weights}
    from lissom.plan.reading import read_shapes

    shapes = read_shapes(folder)
    kind = str(manifest.get("cache", "auto")) if service.cache == "auto" else service.cache
    number = WIDTHS.get(kind, 2.0) + SCALES.get(kind, 0.0) / shapes.head_dim
    cache = int(service.max_tokens_in_cache * shapes.cache_bytes(1) * number)
    table = 0.0 if shapes.tied else shapes.hidden * shapes.vocabulary * shapes.end_bits / 8  # of which a row is read
    return {
        "model": service.name,
        "weights": weights,
        "cache": cache,
        "bytes": weights + (max(ENGINE, ALONE + cache) if alone(folder, service.cache) else ENGINE + cache),
        "written": 1e9 * can.read_all.value / (weights - table),
        "read": 1e9 * can.int8.value / (2 * shapes.blocks * shapes.active_weights),
    }
