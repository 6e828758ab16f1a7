"""Folders: what has learned is written in the same formats, and who is stopped goes on to the same bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lissom
from lissom.artifact import annotate, read_manifest
from lissom.errors import ArtifactError, DataError, ModelError
from lissom.formats import CompressedLayer
from lissom.models import compressible
from lissom.recover import loop
from lissom.recover.folder import race_folder, recover_folder
from lissom.recover.training import Training
from lissom.types import Budget, Recipe

Tiny = Callable[..., Path]
STEPS = [
    {"technique": "rtn", "bits": 3, "group": 16, "layers": "*.mlp.*"},
    {"technique": "magnitude", "sparsity": 0.5, "layers": "*.q_proj"},
    {"technique": "kmeans", "bits": 3, "rows": 0, "layers": "*.o_proj"},
]


@pytest.fixture(scope="module")
def source(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and what was made of it."""
    original, out = tiny("qwen3", True), tmp_path_factory.mktemp("made") / "small"
    lissom.compress_checkpoint(original, Recipe.of(STEPS), torch.empty(0, 8, dtype=torch.long), out)
    annotate(out, certificate={"verdict": "PASS"}, cache="int8")
    return original, out


@pytest.fixture
def windows() -> Tensor:
    return torch.randint(0, 2048, (40, 12))


def specs(folder: Path) -> Any:
    return read_manifest(folder)["weights"]


@pytest.mark.parametrize(
    "training",
    [Training(epochs=2, batch=8), Training(steps=6, batch=8, top_k=32), Training(train="lora", rank=2, steps=6)],
)
def test_a_language_model_learns_what_its_original_says(
    source: tuple[Path, Path], windows: Tensor, training: Training, tmp_path: Path
) -> None:
    original, small = source
    learned = recover_folder(small, windows, tmp_path / "out", training, original=original)
    assert learned.curve.after.held < learned.curve.before.held
    manifest = read_manifest(tmp_path / "out")
    assert "certificate" not in manifest  # it was of another model
    assert manifest["cache"] == "int8"
    assert manifest["recovery"]["best"] == learned.curve.best
    assert manifest["recipe"] == read_manifest(small)["recipe"]
    if training.train == "lora":
        assert {spec["format"] for spec in manifest["weights"].values()} == {"sum"}
    else:
        assert manifest["weights"] == specs(small)
    found, before = lissom.load(tmp_path / "out"), lissom.load(small)
    layers = [
        {n: m for n, m in compressible(model).items() if isinstance(m, CompressedLayer)} for model in (found, before)
    ]
    assert layers[0].keys() == layers[1].keys()
    moved = [not torch.equal(layer.weight.dense(), layers[1][name].weight.dense()) for name, layer in layers[0].items()]
    assert any(moved)
    config = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", small)]
    assert config[0] == config[1]
    assert not list(tmp_path.glob(".*"))


def test_who_is_killed_goes_on_to_the_same_bytes(
    source: tuple[Path, Path], windows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, small = source
    training = Training(steps=8, looks=4, batch=8, top_k=8)
    recover_folder(small, windows, tmp_path / "whole", training, original=original)
    looked, look = 0, loop.Story.look

    def broken(story: loop.Story, enough: Any) -> None:
        nonlocal looked
        looked += 1
        if looked == 4:
            raise KeyboardInterrupt
        look(story, enough)

    monkeypatch.setattr(loop.Story, "look", broken)
    with pytest.raises(KeyboardInterrupt):
        recover_folder(small, windows, tmp_path / "out", training, original=original)
    monkeypatch.setattr(loop.Story, "look", look)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArtifactError, match="the data changed since"):
        recover_folder(small, windows[:30], tmp_path / "out", training, original=original)
    told: list[str] = []
    recover_folder(
        small, windows, tmp_path / "out", training, original=original, progress=lambda e: told.append(str(e))
    )
    assert sum(text.startswith("loss") for text in told) == 2  # of four looks two were there
    assert "ask the original" not in told
    for file in sorted((tmp_path / "whole").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name


def test_labels_and_blocks_that_are_gone(tiny: Tiny, windows: Tensor, tmp_path: Path) -> None:
    original = tiny("llama", False, 4)
    lissom.compress_checkpoint(
        original, Recipe.of([{"technique": "blocks", "sparsity": 0.25}, *STEPS[:1]]), windows[:8], tmp_path / "small"
    )
    learned = recover_folder(tmp_path / "small", windows, tmp_path / "out", Training(epochs=1, batch=8))
    assert learned.curve.after.held < learned.curve.before.held
    assert len(lissom.load(tmp_path / "out").model.layers) == 3  # type: ignore[union-attr, arg-type]


class Net(nn.Module):
    """A class that torch.nn has not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Net, lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))])
def test_modules_learn_by_their_class_and_race(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    original, x = kind().eval(), torch.randn(60, 6)
    own = {"model": kind()} if kind is Net else {}
    lissom.save(original, tmp_path / "original", example=x[:2])
    lissom.save(lissom.quantize_model(original, x, bits=2), tmp_path / "small", example=x[:2])
    training = Training(epochs=6, batch=8, lr=0.001, norms=False)
    data = (x, torch.zeros(60, dtype=torch.long))
    learned = recover_folder(
        tmp_path / "small", data, tmp_path / "out", training, original=tmp_path / "original", **own
    )  # type: ignore[arg-type]
    assert learned.curve.after.held < learned.curve.before.held
    assert specs(tmp_path / "out") == specs(tmp_path / "small")
    names = ["adamw", "momentum"]
    raced = race_folder(
        tmp_path / "small",
        data,
        tmp_path / "raced",
        training,
        optimizers=names,
        seeds=1,
        original=tmp_path / "original",
        **own,
    )  # type: ignore[arg-type]
    assert len(raced.contenders) == 2
    assert read_manifest(tmp_path / "raced")["recovery"]["training"]["optimizer"] == raced.contenders[0].optimizer
    assert torch.isfinite(lissom.load(tmp_path / "raced")(x)).all()


def test_a_graph_learns_only_by_its_class(tmp_path: Path) -> None:
    x = torch.randn(20, 6)
    lissom.save(lissom.quantize_model(Net().eval(), bits=2), tmp_path / "small", example=x[:2])
    with pytest.raises(ModelError, match=r"holds Net without its code, .* model=Net\(\.\.\.\)"):
        recover_folder(tmp_path / "small", x, tmp_path / "out", Training(steps=2))
    assert not list(tmp_path.glob("*out*"))


def test_it_ends_where_a_budget_is_certified_to_be_kept(tmp_path: Path) -> None:
    x = torch.randn(3000, 6)
    y = x[:, :3].argmax(1)
    original = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(original.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(original(x[:500]), y[:500]).backward()
        optimizer.step()
    lissom.save(original.eval(), tmp_path / "original", example=x[:2])
    lissom.save(lissom.quantize_model(original, bits=2), tmp_path / "small", example=x[:2])
    budgets = {"accuracy": Budget(max_drop=0.05)}
    tests = (x[1000:], y[1000:])
    learned = recover_folder(
        tmp_path / "small",
        (x[:1000], y[:1000]),
        tmp_path / "out",
        Training(epochs=60, looks=60),
        original=tmp_path / "original",
        examples=tests,
        budgets=budgets,
    )
    assert learned.verdict == "PASS"
    assert learned.certificate is not None
    assert len(learned.curve.looks) < 61
    assert learned.curve.best == len(learned.curve.looks) - 1
    written = read_manifest(tmp_path / "out")["certificate"]
    assert written["verdict"] == "PASS"
    assert learned.certificate.confidence == pytest.approx(1 - 0.05 / 3)


def test_what_cannot_be_is_refused_before_anything_is_learned(
    source: tuple[Path, Path], windows: Tensor, tmp_path: Path
) -> None:
    original, small = source
    with pytest.raises(ModelError, match="is not compressed, so there is nothing to recover"):
        recover_folder(original, windows, tmp_path / "out")
    with pytest.raises(DataError, match="until a budget is kept, give the original"):
        recover_folder(small, windows, tmp_path / "out", budgets={"perplexity": Budget()}, examples=windows)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ArtifactError, match="exists already"):
        recover_folder(small, windows, tmp_path / "taken", original=original)
    assert not list(tmp_path.glob(".*"))
