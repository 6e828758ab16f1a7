"""Language models: written part by part as they are compressed.

A part that is written stays, whatever happens then: the same call goes on from there, to the same result.
"""

import json
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lissom.artifact.coding import check as check_coding
from lissom.artifact.fingerprint import of_code, of_json, of_model, of_tensors
from lissom.artifact.journal import Journal, beside
from lissom.artifact.manifest import annotate, check_free, write_json, write_manifest
from lissom.artifact.tensors import parts_of, payload, take_weight
from lissom.compress import Piece
from lissom.compress.resident import conduct
from lissom.errors import DataError, ModelError
from lissom.files import replacing
from lissom.models import Checkpoint
from lissom.models.checkpoint import INDEX, MARK, possible, read_config, skeleton
from lissom.models.form import form_of
from lissom.models.resize import matrix_shapes, uniform
from lissom.models.tokenizer import tokenizer_of
from lissom.progress import Progress, Tell, quiet
from lissom.types import Recipe

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CARRIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "vocab*",
    "merges.txt",
    "*.jinja",
    "generation_config.json",
    "*.model",
)
SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads")


def compress_checkpoint(
    model: str | Path,
    recipe: Recipe,
    windows: Int[Tensor, "n t"],
    out: str | Path,
    *,
    max_ram: int | None = None,
    entropy_coding: str | None = None,
    group: "ProcessGroup | None" = None,
    progress: Tell = quiet,
) -> Path:
    """Compress a language model from its folder (or hub name) into a new folder, a block in memory at a time.

    Only where a step must see the whole model (`blocks`) is it held whole. Who is stopped, or has no more room on the
    disk, makes the same call again: the parts that were done are in a hidden folder beside `out` until that appears.

    Args:
        model: a Hugging Face checkpoint of a known family.
        recipe: what to do to which layers.
        windows: n windows of t tokens to calibrate on; none (0 rows) where the recipe needs no data.
        out: the folder to make; it appears when it is complete.
        max_ram: bytes of memory that the process may take; by default as many as it needs.
        entropy_coding: "deflate" for tensors coded on disk and decoded when they are loaded.
        group: several processes, each of which calls this with windows of its own, at least one where there are any:
            what is written, by the first of them, is what one would make of the windows of all. All see the same disk.
        progress: told of each part as it is done; not of those that were there already.

    Raises:
        ModelError, RecipeError, DataError, ArtifactError: with what is wrong and what to do.
    """
    check_coding(entropy_coding)
    out, checkpoint = Path(out), Checkpoint(model)
    check_free(out)
    checkpoint.check()
    asked = {
        "model": of_model(checkpoint.folder),
        "data": of_all(of_tensors({"windows": windows}), len(windows), group),
        "recipe": of_json([recipe.as_dict(), max_ram, entropy_coding]),
        "code": of_code(),
    }
    with shared(beside(out), asked, group) as journal:
        kept = Kept(journal)
        wait(group)  # nothing more is kept until all know what was
        pieces, told = conduct(checkpoint, recipe, windows, max_ram, kept, group)
        if writes(group):
            write(journal, checkpoint, recipe, pieces, told, entropy_coding, progress)
        else:
            deque(pieces, maxlen=0)
        wait(group)  # the others may still have to read what was kept
        if writes(group):
            journal.become(out)
    wait(group)
    return out


@contextmanager
def shared(folder: Path, asked: Mapping[str, str], group: "ProcessGroup | None") -> Iterator[Journal]:
    """The journal of the one that writes, which the others only read."""
    if writes(group):
        with Journal.open(folder, asked) as journal:
            wait(group)
            yield journal
    else:
        wait(group)
        yield Journal.of_another(folder)


def writes(group: "ProcessGroup | None") -> bool:
    """Whether this process is the first, or alone."""
    return group is None or group.rank() == 0


def wait(group: "ProcessGroup | None") -> None:
    """Until all processes have come so far."""
    if group is not None:
        group.barrier().wait()


def of_all(fingerprint: str, windows: int, group: "ProcessGroup | None") -> str:
    """One fingerprint of the windows of all processes.

    Raises:
        DataError: some have windows, and some have none.
    """
    if group is None:
        return fingerprint
    own = torch.tensor([int(fingerprint[:10], 16) * (group.rank() + 1), windows > 0], dtype=torch.int64)
    group.allreduce([own]).wait()
    total, there = own.tolist()
    if there not in (0, group.size()):
        raise DataError(
            f"data: {there} of {group.size()} processes have windows to calibrate on; give more, or to fewer processes"
        )
    return of_json([total, group.size()])


def write_pieces(checkpoint: Checkpoint, recipe: Recipe, pieces: Iterable[Piece], out: Path, **notes: Any) -> None:
    """Write the compressed parts of a language model, and all that belongs to them, as a new folder.

    `notes` are what else to write down in lissom.json.

    Raises:
        ArtifactError: the name is taken, or the disk cannot hold it.
    """
    check_free(out)
    with Journal.open(beside(out), {}) as journal:
        write(journal, checkpoint, recipe, pieces, {}, None, quiet)
        annotate(journal.files, **notes)
        journal.become(out)


def write(
    journal: Journal,
    checkpoint: Checkpoint,
    recipe: Recipe,
    pieces: Iterable[Piece],
    told: Mapping[str, Any],
    coding: str | None,
    progress: Tell,
) -> None:
    """Write parts into a journal, and what makes them a model; `told` is what its config has to say anew."""
    total = part_count(checkpoint, told)
    written = WeakIdKeyDictionary()  # the tensors that are still in memory: a shared one may come again
    for piece in pieces:
        keep(journal, piece, written, coding)
        progress(Progress(stage="compress", text=piece.name, done=len(journal.names()), total=total))
        del piece  # none of it waits while the next one is made
    complete(journal, checkpoint, recipe, told)


def part_count(checkpoint: Checkpoint, told: Mapping[str, Any]) -> int:
    """How many parts there will be: an embedding, blocks, a norm, and a head unless that is the embedding."""
    blocks: int = told.get("num_hidden_layers", checkpoint.config.num_hidden_layers)
    return blocks + 2 + (not told.get("tie_word_embeddings", checkpoint.config.tie_word_embeddings))


class Kept(Mapping[str, Piece]):
    """The parts of a language model that a journal holds, each read when it is asked for."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._names = [name for name in journal.names() if journal.has(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Piece:
        if name not in self._names:
            raise KeyError(name)
        record, tensors = self._journal.read(name), self._journal.tensors(name)
        tensors |= {alias: tensors[same] for alias, same in record["aliases"].items()}
        weights = {layer: take_weight(layer, spec, tensors) for layer, spec in record["weights"].items()}
        return Piece(name=name, weights=weights, tensors=tensors)


def keep(journal: Journal, piece: Piece, written: MutableMapping[Tensor, str], coding: str | None) -> None:
    """Write a part into a journal; tensors that were `written` before are not written again."""
    tensors, aliases = dict(piece.tensors), dict[str, str]()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()} | matrix_shapes(piece.weights)
    for layer, weight in piece.weights.items():
        parts, same = once(parts_of(layer, weight), written)
        tensors, aliases = tensors | parts, aliases | same
    weights = {layer: weight.spec() for layer, weight in piece.weights.items()}
    record = {"weights": weights, "aliases": aliases, "shapes": shapes, "tensors": list(tensors)}
    journal.keep(piece.name, record, tensors, coding)


def complete(journal: Journal, checkpoint: Checkpoint, recipe: Recipe, told: Mapping[str, Any]) -> None:
    """Put beside the parts, which are all there, what makes them a model."""
    folder, family = journal.files, checkpoint.family
    blocks = [f"{family.blocks}.{number}" for number in range(checkpoint.config.num_hidden_layers)]
    names = [name for name in (family.embedding, *blocks, family.norm, family.head) if journal.has(name)]
    records = [journal.read(name) for name in names]
    told = {**checkpoint.told, **told, **uniform(checkpoint.config, family, merged(records, "shapes"))}
    carry(checkpoint.folder, folder, told)
    index = {
        own: journal.file(name).name for name, found in zip(names, records, strict=True) for own in found["tensors"]
    }
    size = sum(payload(journal.file(name)) for name in names)
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": index})
    weights, aliases = merged(records, "weights"), merged(records, "aliases")
    content = {"recipe": recipe.as_dict(), "weights": weights, "aliases": aliases, **alone(checkpoint, folder)}
    write_manifest(folder, "language_model", content)


def merged(records: Iterable[Mapping[str, Any]], entry: str) -> dict[str, Any]:
    """One entry of all records, in one mapping."""
    return {name: value for record in records for name, value in record[entry].items()}


def alone(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """What serves the model of a folder without transformers; nothing where its tokenizer needs that."""
    try:
        tokenizer = tokenizer_of(checkpoint.tokenizer(), folder)
    except (ModelError, ImportError):  # there is none, or it needs a package that is not here
        return {}
    form = form_of(skeleton(read_config(folder, compressed=True)))
    return {} if tokenizer is None else {"form": form, "tokenizer": tokenizer}


def once(
    tensors: Mapping[str, Tensor], written: MutableMapping[Tensor, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors that are not among those `written` before, and under which name the others are."""
    first = {name: written.setdefault(tensor, name) for name, tensor in tensors.items()}
    new = {name: tensor for name, tensor in tensors.items() if first[name] == name}
    return new, {name: same for name, same in first.items() if same != name}


def carry(source: Path, folder: Path, told: Mapping[str, Any]) -> None:
    """Copy the tokenizer, and the config with what is `told` anew.

    A mark in it keeps other loaders from filling the gaps with noise. Sizes that transformers would refuse stay as they
    were (a width must be a multiple of the heads): the tensors tell them too.
    """
    for pattern in CARRIED:
        for file in source.glob(pattern):
            with replacing(folder / file.name) as new:
                shutil.copyfile(file, new)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if not possible({**config, **told}):
        told = {name: value for name, value in told.items() if name not in SIZES}
    write_json(folder / "config.json", {**config, **told, "quantization_config": MARK})
