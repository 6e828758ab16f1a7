"""What a folder holds, recovered: opened, taught, and written as a new folder; who is stopped goes on where it was."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lissom.artifact import open_folder, save
from lissom.artifact.fingerprint import of_code, of_files, of_json, of_tensors
from lissom.artifact.folder import Opened
from lissom.artifact.foreign import pruned, told
from lissom.artifact.journal import Journal, within
from lissom.artifact.language import write_pieces
from lissom.artifact.manifest import check_free
from lissom.calibrate import Batch
from lissom.calibrate.data import each, tensors
from lissom.compress import Piece
from lissom.compress.stream import exactly
from lissom.errors import DataError, ModelError, RecipeError
from lissom.estimate import Certificate
from lissom.evaluate import Given, budgets_of
from lissom.files import plain
from lissom.formats import CompressedLayer, freeze, unfreeze
from lissom.models import Checkpoint, compressible
from lissom.models.families import at
from lissom.progress import Progress, Tell, quiet
from lissom.recover.budget import Inside
from lissom.recover.feed import feed
from lissom.recover.loop import Curve
from lissom.recover.memory import Memory
from lissom.recover.model import ALL, AS_SAID, begin_near, learnable, lesson_of, recovered, whole
from lissom.recover.parallel.layout import Layout
from lissom.recover.parallel.workers import Workers, started, workers
from lissom.recover.race import Contender, race
from lissom.recover.training import STAGES, Training
from lissom.types import Recipe

CPU = torch.device("cpu")
PLACES = ("state 0", "state 1")  # by turns: while one is written, the other is whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """How the loss of a folder's model went; the certificate of the last try and the contenders, if there were any."""

    curve: Curve
    certificate: Certificate | None = None
    contenders: tuple[Contender, ...] = ()

    @property
    def verdict(self) -> str:
        """That of the certificate; empty without one."""
        return self.certificate.verdict if self.certificate else ""


def recover_folder(
    folder: str | Path,
    data: Batch,
    out: str | Path,
    training: Training = AS_SAID,
    *,
    original: str | Path | None = None,
    held: Any = 0.05,
    examples: Batch | None = None,
    budgets: Given | None = None,
    model: nn.Module | None = None,
    layout: Layout = ALL,
    progress: Tell = quiet,
) -> Learned:
    """Let the compressed model of a folder learn, in its formats, and write what comes of it as a new folder.

    Who is stopped makes the same call again, and goes on at the last look, to the same result unless it is time that
    ends it: how far it has come is in a hidden folder beside `out` until that appears. What the folder's certificate
    says is not true of what has learned: it is left out. Where torchrun has started several processes, each calls this
    and learns from its share of every batch; the first one writes. Of an original that is remembered each asks its
    share, and reads what all have asked. What gradients in few bits still owe is not kept.

    Args:
        folder: what lissom wrote; a language model or a module.
        data: of a language model n windows of t tokens; else one batch of all examples.
        out: the folder to make; it appears when it is complete.
        training: how to learn.
        original: the folder of the model that it was made from, whose predictions are learned; without it labels are.
        held: the share of the data that is judged by, or data of its own.
        examples, budgets: it ends sooner where the model is certified to be inside these budgets, of metrics by name or
            itself, by examples that are in random order and not learned from (`budget.py`); for that the original runs.
        model: an instance of the module's class, where the folder needs it.
        layout: how several workers divide the work (`read_layout`); by default each has the whole model.
        progress: told of each look at what is held out.

    Raises:
        ModelError, RecipeError, DataError, ArtifactError: with what is wrong and what to do.
    """
    out, folder = Path(out), Path(folder)
    check_free(out)
    opened = open_folder(folder, base=copy.deepcopy(model))
    if budgets is not None and (original is None or examples is None):
        raise DataError(
            "recover: to learn until a budget is kept, give the original, and examples that are not learned from"
        )
    limits = {} if budgets is None else budgets_of(budgets)
    given = [
        part for batch in (data, held, examples) if not isinstance(batch, float | int | None) for part in tensors(batch)
    ]
    asked = {
        "model": of_files(within(folder)),
        "original": of_files([] if original is None else within(Path(original))),
        "data": of_tensors({str(number): part for number, part in enumerate(given)}),
        "training": of_json(
            [replace(training, stages=STAGES[0]).as_dict(), plain(held) if isinstance(held, float | int) else None]
        ),
        "budgets": of_json({kind.name: plain(budget) for kind, budget in limits.items()}),
        "code": of_code(),
    }
    place = out.parent / f".{out.name}.recover"
    with workers() as team, Journal.open(place, asked) if team.first else nullcontext() as journal:
        student = begun(opened, training, model).to(team.device)
        reading = partial(read_original, original, model, team.device)
        fed = feed(data, batch=training.batch, held=held, seed=training.seed)
        memory = remembering(training, place if journal is None else journal, asked, team)
        lesson = lesson_of(training, fed, None if original is None else reading, memory, progress)
        if original is not None:
            begin_near(student, reading())
        inside = None
        if examples is not None and limits:
            inside = Inside(original=reading(), examples=examples, budgets=limits)
        keeper = None if journal is None else Kept(journal)
        with learnable(student):
            curve, laid = recovered(
                student,
                fed,
                training,
                lesson,
                team=team,
                layout=layout,
                keeper=keeper,
                enough=inside,
                progress=progress,
            )
        taught = whole(
            laid,
            lambda: begun(open_folder(folder, base=copy.deepcopy(model)), training, model),
            training,
            team.first,
        )
        found = Learned(curve=curve, certificate=None if inside is None else inside.certificate)
        if journal is not None:
            progress(Progress(stage="write", text=str(out)))
            write_learned(opened, taught.cpu(), out, data, training, found)
            journal.remove()
    return found


def race_folder(
    folder: str | Path,
    data: Batch,
    out: str | Path,
    training: Training = AS_SAID,
    *,
    optimizers: Sequence[str],
    seeds: int = 3,
    original: str | Path | None = None,
    held: Any = 0.05,
    model: nn.Module | None = None,
    progress: Tell = quiet,
) -> Learned:
    """Let the compressed model of a folder learn with each of several optimizers (`race`), and write the best.

    It cannot go on where it was stopped. The rest is as for `recover_folder`.

    Raises:
        RecipeError: torchrun has started several workers.
    """
    if started() > 1:
        raise RecipeError("recover: a race is for one worker; start it without torchrun, or leave out compare")
    out, folder = Path(out), Path(folder)
    check_free(out)
    opened = open_folder(folder, base=copy.deepcopy(model))
    student = begun(opened, training, model)
    teacher = None if original is None else read_original(original, model)
    with learnable(student):
        found = race(
            student, data, training, optimizers=optimizers, seeds=seeds, original=teacher, held=held, progress=progress
        )
    learned = Learned(curve=found.curve, contenders=found.contenders)
    progress(Progress(stage="write", text=str(out)))
    write_learned(opened, found.model, out, data, found.training, learned)
    return learned


def begun(opened: Opened, training: Training, model: nn.Module | None) -> nn.Module:
    """The model that was opened, trainable.

    Raises:
        ModelError: nothing in it is compressed, or it is a graph, whose class is needed.
    """
    manifest = opened.manifest
    if manifest.get("kind") == "module" and "architecture" not in manifest and model is None:
        name = manifest["class"]
        raise ModelError(
            f"{opened.folder} holds {name} without its code, which learns only by its class; in Python, give "
            f"recover_folder model={name}(...)"
        )
    if not manifest.get("weights") and not has_mask(opened) and training.train != "all":
        raise ModelError(f"{opened.folder} is not compressed, so there is nothing to recover; or let 'all' of it learn")
    return unfreeze(opened.model)


def has_mask(opened: Opened) -> bool:
    """Whether it is a dense language model whose zeros are a mask, as another tool has pruned it."""
    theirs = not opened.manifest and pruned(opened.folder) and told(opened.folder) is None
    return theirs and any(isinstance(part, CompressedLayer) for part in opened.model.modules())


def read_original(folder: str | Path | None, model: nn.Module | None, device: torch.device = CPU) -> nn.Module:
    """The original; on a processor its matrices of 16 bits stay as they are stored."""
    assert folder is not None
    return open_folder(folder, base=copy.deepcopy(model), narrow=device.type == "cpu").model.to(device)


def remembering(training: Training, kept: Journal | Path, asked: Mapping[str, str], team: Workers) -> Memory:
    """What the original says, in the first worker's journal, which the others read where they see it."""
    team.wait()  # until that one has begun it
    return Memory(training.top_k, kept if isinstance(kept, Journal) else Journal.seen(kept, asked), team)


class Kept:
    """Where training stands, in a journal: the newest of two that is whole."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def keep(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep it beside what was kept before."""
        self.journal.keep(PLACES[len(record["looks"]) % 2], record, tensors)

    def last(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What was kept last; None where nothing was."""
        found = [(self.journal.read(name), name) for name in PLACES if self.journal.has(name)]
        if not found:
            return None
        record, name = max(found, key=lambda pair: len(pair[0]["looks"]))
        return record, self.journal.tensors(name)


def write_learned(
    opened: Opened, model: nn.Module, out: Path, data: Batch, training: Training, learned: Learned
) -> None:
    """Write what has learned, with all that its folder said and is still true."""
    manifest = opened.manifest
    recipe = Recipe.of(manifest.get("recipe", []))
    notes: dict[str, Any] = {"recovery": {"training": training.as_dict(), **learned.curve.as_dict()}}
    notes |= {"cache": manifest["cache"]} if "cache" in manifest else {}
    notes |= {} if learned.certificate is None else {"certificate": plain(learned.certificate)}
    if opened.tokenizer is None:
        save(model, out, example=each(data, lambda part: part[:2]), recipe=recipe.as_dict(), **notes)
    else:
        checkpoint = Checkpoint(opened.folder, compressed=True)
        write_pieces(checkpoint, recipe, parts(checkpoint, model), out, **notes)


def parts(checkpoint: Checkpoint, model: nn.Module) -> Iterator[Piece]:
    """A compressed language model, part by part as it is stored; what is not compressed as it was in its folder."""
    family = checkpoint.family
    freeze(model)
    blocks = [f"{family.blocks}.{own}" for own, _ in at(model, family.blocks).named_children()]
    heads = [] if checkpoint.config.tie_word_embeddings else [family.head]
    for name in (family.embedding, *blocks, family.norm, *heads):
        part = at(model, name)
        layers = {n: layer for n, layer in compressible(part, name).items() if isinstance(layer, CompressedLayer)}
        state = {f"{name}.{own}": t for own, t in part.state_dict().items() if ".matrix." not in f".{own}"}
        tensors = {n: exactly(tensor, checkpoint.tensor(n).dtype) for n, tensor in state.items()}
        yield Piece(name=name, weights={n: layer.weight for n, layer in layers.items()}, tensors=tensors)
