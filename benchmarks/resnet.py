"""ResNet-20 and ResNet-56 on CIFAR-10, trained by others, compressed as any module is.

Shapes: n images.
"""

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache import Fields, Task
from cifar import ResNet, images, multiplications, recover, trained
from peers import HERE, Places, ran
from table import Row, markdown, plain, size_of, span, vision_table
from torch import Tensor, nn

import lissom
from lissom.evaluate import Comparison, Paired, paired
from lissom.evaluate.metric import metric

CALIBRATION = 512  # images
BATCH = 64
EPOCHS = 10  # of recovery, where channels are pruned
MODELS = {"ResNet-20": (3, "resnet20-12fca82f.th"), "ResNet-56": (9, "resnet56-4bfd9763.th")}
OURS = "channels, half of each block's"
PEERS = {"Torch-Pruning, by magnitude": "magnitude", "Torch-Pruning, by Taylor expansion": "taylor"}
TEXTS = ("resnet.py", "cifar.py", "peer_torchpruning.py")

Way = Callable[[nn.Module, Any], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The weights, the images, and a place to write."""

    models: Path
    held: dict[str, tuple[Tensor, Tensor]]
    archive: Path
    place: Path
    places: Places

    @classmethod
    def of(cls, shared: Path, place: Path, places: Places) -> "Bench":
        """Everything in the shared folder."""
        data = shared / "data"
        return cls(
            models=shared / "models" / "resnet_cifar10",
            held=images(data / "cifar10_lossless" / "cifar10_lossless.npz"),
            archive=data / "cifar10_jpeg" / "train.tar.gz",
            place=place,
            places=places,
        )

    @property
    def calibration(self) -> list[Tensor]:
        """Batches of training images."""
        return list(self.held["train"][0][:CALIBRATION].split(BATCH))

    def folder(self) -> Path:
        """A new place to write."""
        return self.place / f"vision-{len(list(self.place.iterdir()))}"


def ways() -> dict[str, Way]:
    """What is tried without training, as a user writes it."""

    def steps(**step: Any) -> Way:
        return lambda model, data: lissom.compress_model(model, data, steps=[{"layers": "*", **step}])

    return {
        "int8: `quantize_model(model, data)`": lambda model, data: lissom.quantize_model(model, data),
        "int4, gptq: `quantize_model(model, data, bits=4)`": lambda m, data: lissom.quantize_model(m, data, bits=4),
        "palette: kmeans, 4 bits, a codebook a row": steps(technique="kmeans", bits=4, rows=1),
        "palette: kmeans, 4 bits, a codebook a matrix": steps(technique="kmeans", bits=4, rows=0),
        "pruned, then a palette: `compress_model(model, data)`": lambda m, data: lissom.compress_model(m, data),
        'binary: `quantize_model(model, data, bits="binary")`': lambda m, d: lissom.quantize_model(m, d, bits="binary"),
    }


def tasks(bench: Bench, versions: dict[str, str]) -> Iterator[Task]:
    """Every row: those compressed only, and those pruned and trained."""
    texts = {name: hashlib.sha256(Path(__file__).with_name(name).read_bytes()).hexdigest()[:16] for name in TEXTS}
    for model in MODELS:
        for name, way in {"original, float32": None, **ways()}.items():
            key = {"model": model, "way": name, "text": texts["cifar.py"], "versions": versions}
            run = lambda model=model, way=way: compressed(bench, model, way).fields()  # noqa: E731
            yield Task(part="vision", table=model, name=name, key=key, measure=run)
    for model in MODELS:
        for name, prune in {OURS: channels, **dict.fromkeys(PEERS)}.items():
            key = {"model": model, "way": name, "texts": texts, "epochs": EPOCHS, "versions": versions}
            run = lambda model=model, name=name, own=prune: pruned(bench, model, name, own)  # noqa: E731
            yield Task(part="vision", table=f"{model}, pruned", name=name, key=key, measure=run)


def compressed(bench: Bench, name: str, way: Way | None) -> Row:
    """Compress, save, load again, and evaluate."""
    blocks, file = MODELS[name]
    original = trained(bench.models / file, blocks)
    start = time.process_time()
    model = copy.deepcopy(original) if way is None else way(original, bench.calibration)
    seconds = None if way is None else time.process_time() - start
    folder = lissom.save(model, bench.folder())
    read = lissom.load(folder, model=ResNet(blocks))
    weights = sum(p.numel() for p in original.parameters())
    scores = paired(original, read, bench.held["test"], "accuracy")
    return Row(name=name, scores=scores, nbytes=size_of(folder), weights=weights, seconds=seconds)


def channels(model: nn.Module, data: Any) -> nn.Module:
    """Half of the channels between the two convolutions of every block, the second one fitted anew."""
    return lissom.compress_model(model, data, steps=[{"layers": "layer*.conv1", "technique": "channels"}])


def pruned(bench: Bench, name: str, way: str, own: Way | None) -> Fields:
    """Halve the inner channels, by us or by a peer, and train for some epochs."""
    blocks, file = MODELS[name]
    original = trained(bench.models / file, blocks)
    facts = by_us(bench, original, own) if own else by_peer(bench, bench.models / file, blocks, PEERS[way])
    x, y = bench.held["test"]
    return {"original": right(original, x, y), **facts}


def by_us(bench: Bench, original: ResNet, way: Way) -> Fields:
    """What the peer's script does, with lissom."""
    start = time.process_time()
    model = way(original, bench.calibration)
    facts: Fields = {
        "seconds": time.process_time() - start,
        "multiplications": [multiplications(original), multiplications(model)],
        "weights": sum(p.numel() for p in model.parameters()),
        "before": right(model, *bench.held["test"]),
    }
    start = time.process_time()
    recover(model, bench.archive, bench.held["train"][0], epochs=EPOCHS)
    read = lissom.load(lissom.save(model, folder := bench.folder(), example=bench.calibration[0][:2]))
    after = right(read, *bench.held["test"])
    return {**facts, "after": after, "recovery_seconds": time.process_time() - start, "nbytes": size_of(folder)}


def by_peer(bench: Bench, weights: Path, blocks: int, importance: str) -> Fields:
    """Torch-Pruning in its own interpreter."""
    if bench.places.python is None:
        raise SystemExit("quality: Torch-Pruning needs --peer-python, an interpreter that has it")
    out = bench.folder()
    lossless = bench.models.parents[1] / "data" / "cifar10_lossless" / "cifar10_lossless.npz"
    words = [bench.places.python, HERE / "peer_torchpruning.py", weights, blocks, lossless, bench.archive, out]
    return ran([*words, "--importance", importance, "--epochs", EPOCHS], out)


@torch.no_grad()
def right(model: nn.Module, x: Tensor, y: Tensor) -> list[float]:
    """Which images are classified rightly."""
    said = torch.cat([model.eval()(lot).argmax(-1) for lot in x.split(250)])
    return (said == y).float().tolist()


def pruned_rows(found: Sequence[tuple[Task, Fields]]) -> list[tuple[str, ...]]:
    """Two lines for each way: before and after the training."""
    body = []
    for task, row in found:
        before, after = row["multiplications"]
        for when in ("before", "after"):
            scores = Paired(
                metric=metric("accuracy"), original=np.array(row["original"]), compressed=np.array(row[when])
            )
            figures = Comparison.of(scores)
            body.append(
                (
                    f"{task.name}, {when} recovery",
                    span(figures.compressed, ".1f", 100),
                    span(figures.drop, "+.2f", 100),
                    f"{before / after:.2f}",
                    f"{row['weights']:,}",
                    plain(row["seconds" if when == "before" else "recovery_seconds"]),
                )
            )
    return body


def section(name: str, rows: Sequence[Row], halved: Sequence[tuple[Task, Fields]]) -> list[str]:
    """The protocol and the tables of one network."""
    said = [
        f"## {name}, CIFAR-10",
        "",
        f"{rows[0].weights:,} weights, published by others. Accuracy on the first {rows[0].figures.original.n:,} test "
        f"images, with exact pixels; calibration on {CALIBRATION} training images. Each model is saved, loaded again "
        "and evaluated; nothing is trained. The drop and the flips are paired, image by image; the batch "
        "normalisations stay in float32 and are counted in the bytes.",
        "",
        *vision_table(rows),
    ]
    if halved:
        head = ("model", "accuracy %", "drop in points, paired", "times fewer MACs", "weights", "processor seconds")
        said += [
            "",
            "Half of the channels inside each block pruned (the shortcuts pad to fixed widths, so that the stream "
            f"between blocks keeps its own). Recovery: {EPOCHS} epochs of the 50,000 lossy training images, the same "
            "code, data and order for every row.",
            "",
            *markdown(head, pruned_rows(halved)),
        ]
    return said
