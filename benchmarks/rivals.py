"""What the search is compared with: recipes that are the same for every layer, and peers that search themselves.

A rival chooses on the examples that `optimize` calibrates and chooses on, and what it made is certified as ours is, on
the same examples. A uniform recipe has nothing to choose, and is certified by itself. Peers run in an interpreter of
their own. NNCF's accuracy control is given the budget. AutoRound's AutoScheme is given mean bits per weight
instead: of several targets the smallest model that is certified counts, with the seconds of making it alone. It leaves
the embedding, which is the head too, in 16 bits; here that is rounded to 8 as in our uniform recipes, and counted so.

Shapes: n examples.
"""

import json
import shutil
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from subjects import BATCH, LENGTH, PROMPT, WRITTEN, Run, Subject
from table import size_of
from torch import Tensor, nn
from turns import Peer as Process
from turns import turn

from lissom.artifact import open_folder
from lissom.calibrate import Batch
from lissom.calibrate.data import each, tensors
from lissom.estimate import Certificate
from lissom.evaluate import Paired, certify_models, paired
from lissom.formats import Dense
from lissom.search.split import Split, split
from lissom.statistics import Moments
from lissom.techniques.quantize.rtn import rtn
from lissom.types import Budget, Recipe

BITS = (2.5, 3, 4, 5, 6, 8)  # mean bits per weight that AutoScheme is asked for, scales counted
EMBEDDING = "model.embed_tokens.weight"
ITERATIONS = 200  # of its tuning, the tool's own number
Row = dict[str, Any]


class Said(nn.Module):
    """Stands in for a model that ran elsewhere: to batches that come in order it says what that said [n, ...]."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs, self.given = outputs, 0

    def forward(self, *args: Tensor, **named: Tensor) -> Tensor:
        """The outputs for the next examples."""
        start, self.given = self.given, self.given + len(next(iter((*args, *named.values()))))
        return self.outputs[start : self.given]


class Rival(ABC):
    """What is compared with the search on one subject."""

    name: str

    def __init__(self, subject: Subject, place: Path) -> None:
        self.subject, self.place = subject, place

    @cached_property
    def lots(self) -> Split:
        """The examples as `optimize` divides them."""
        return split(self.subject.data, {self.subject.by: Budget()})

    @cached_property
    def original(self) -> nn.Module:
        """The model that it is compared with."""
        model = self.subject.model
        return model if isinstance(model, nn.Module) else open_folder(model).model

    @abstractmethod
    def within(self, budget: Budget) -> Row:
        """What it makes for a budget, certified."""

    @abstractmethod
    def turn(self) -> float:
        """The milliseconds that this takes, as others are timed."""


class Uniform(Rival):
    """One recipe of the subject's, made once for all budgets."""

    def __init__(self, recipe: Recipe, subject: Subject, place: Path) -> None:
        super().__init__(subject, place)
        self.name, self.recipe = recipe.name, recipe

    @cached_property
    def scores(self) -> Paired:
        """Its scores beside the original's on the examples that certify; it is written to disk on the way."""
        begun = time.perf_counter()
        trial = self.subject.searched(self.lots).compress(self.recipe, self.lots.calibration)
        self.seconds = time.perf_counter() - begun
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.parent.mkdir(parents=True, exist_ok=True)
        trial.write(self.place, {})
        return paired(self.original, trial.open(), self.lots.certification, self.subject.by)

    def within(self, budget: Budget) -> Row:
        """Its certificate."""
        certifier = self.subject.by.certifier(budget, planned=self.lots.units)
        certifier.add(self.scores.original, self.scores.compressed)
        found = proof(certifier.certificate)
        return {**found, "seconds": self.seconds, "bytes": size_of(self.place), **self.subject.on_exact(self.place)}

    @cached_property
    def run(self) -> Run:
        """What is timed."""
        return self.subject.timed(self.place)

    def turn(self) -> float:
        """A turn of it."""
        return turn(self.run)


class Peer(Rival):
    """A tool in a process that begins when it is first needed."""

    def __init__(self, python: Path, subject: Subject, place: Path, quick: bool) -> None:
        super().__init__(subject, place)
        self.python, self.quick = python, quick

    @cached_property
    def peer(self) -> Process:
        """The other process."""
        self.place.mkdir(parents=True, exist_ok=True)
        return self.begin()

    @abstractmethod
    def begin(self) -> Process:
        """Write the files that it needs, and start it."""

    def certified(self, model: nn.Module, budget: Budget) -> Row:
        """The certificate of what it made."""
        budgets, units = {self.subject.by: budget}, self.lots.units
        found = certify_models(self.original, model, self.lots.certification, budgets, planned=units)
        return {**proof(found), "versions": self.peer.versions}


def proof(certificate: Certificate) -> Row:
    """A certificate as a row has it."""
    return {"verdict": certificate.verdict, "drop": asdict(certificate.drop), "n": certificate.n}


class NNCF(Peer):
    """NNCF's quantization with accuracy control, run in OpenVINO."""

    name = "NNCF, accuracy control"

    def begin(self) -> Process:
        """The module as an exported graph, and the examples as arrays."""
        for name in ("calibration", "selection", "certification"):
            parts = tensors(padded(getattr(self.lots, name)))
            np.savez(self.place / f"{name}.npz", *(part.numpy() for part in parts))
        np.savez(self.place / "timed.npz", *(part.numpy() for part in tensors(self.subject.few)))
        kind = "classes" if self.subject.by.name == "accuracy" else "pairs"
        inputs = tensors(each(self.lots.calibration, lambda part: part[:BATCH]))[:-1]
        length = {2: torch.export.Dim.AUTO} if kind == "pairs" else None  # or it would run on padding alone
        program = torch.export.export(self.original, inputs, dynamic_shapes=(length,) * len(inputs))
        torch.export.save(program, self.place / "model.pt2")
        return Process(self.python, "peer_nncf.py", self.place, kind, BATCH)

    def within(self, budget: Budget) -> Row:
        """Its model for the budget."""
        facts = self.peer.ask("make", budget.max_drop)
        self.peer.ask("outputs")
        return facts | self.certified(Said(torch.from_numpy(np.load(self.place / "outputs.npy"))), budget)

    def turn(self) -> float:
        """A batch."""
        return float(self.peer.ask("turn"))


class AutoScheme(Peer):
    """AutoRound's choice of bits for each layer, run in transformers."""

    name = "AutoRound, AutoScheme"
    bits: float

    def begin(self) -> Process:
        """The windows for calibration as texts."""
        tokenizer: Any = open_folder(self.source).tokenizer
        texts = [tokenizer.decode(window) for window in tensors(self.lots.calibration)[0]]
        (self.place / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        words = (self.source, LENGTH, PROMPT, WRITTEN, 0 if self.quick else ITERATIONS)
        return Process(self.python, "peer_autoscheme.py", self.place, *words)

    @property
    def source(self) -> Path:
        """The folder of the original."""
        assert isinstance(self.subject.model, Path)
        return self.subject.model

    @cached_property
    def made(self) -> dict[float, Row]:
        """Its models so far, by the bits that were asked for."""
        return {}

    def within(self, budget: Budget) -> Row:
        """The smallest of its models that passes, or the largest, which does not."""
        for bits in BITS[2:3] if self.quick else BITS:
            if bits not in self.made:
                self.made[bits] = self.peer.ask("make", bits)
            facts = self.made[bits]
            model, saved = self.model(bits)
            row = {**facts, "bytes": facts["bytes"] - saved, **self.certified(model, budget)}
            self.bits = bits
            if row["verdict"] == "PASS":
                break
        return row

    def model(self, bits: float) -> tuple[nn.Module, int]:
        """What it made, with the embedding in 8 bits, and the bytes that these save."""
        model = open_folder(self.source).model
        dense = load_file(self.place / f"{bits:g}" / "dense.safetensors")
        table = dense.pop(EMBEDDING)
        rounded = rtn(Dense(values=table), Moments.blank(table.shape[1]), bits=8)
        ends = dict.fromkeys((EMBEDDING, "lm_head.weight"), rounded.dense())
        model.load_state_dict({**dense, **ends})
        return model, load_file(self.source / "model.safetensors")[EMBEDDING].nbytes - rounded.nbytes

    def turn(self) -> float:
        """An answer."""
        return float(self.peer.ask("turn", self.bits))


def padded(batch: Batch) -> Batch:
    """Whole batches: what is missing from the last is the first examples again."""
    count = len(tensors(batch)[0])
    return each(batch, lambda part: torch.cat([part, part[: -count % BATCH]]))
