"""The first blocks of a language model tell of a form what all blocks would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lissom.artifact import open_folder, read_manifest
from lissom.artifact.journal import Journal
from lissom.evaluate import metric
from lissom.files import read_json
from lissom.models import Checkpoint
from lissom.progress import quiet
from lissom.search import shallow
from lissom.search.bank import Bank
from lissom.search.candidates import measured_in
from lissom.search.forms import CACHE, ORIGINAL, SAFE
from lissom.search.language import LanguageSubject
from lissom.search.latency import Run
from lissom.search.module import ModuleSubject
from lissom.search.shallow import enough

CPU = torch.device("cpu")
FEW = (ORIGINAL, SAFE, "4 bits")


@pytest.fixture(scope="module")
def bank(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    subject = LanguageSubject(demo_folder, CPU)
    forms = {layer: {f: own[f] for f in FEW if f in own} for layer, own in subject.forms.items()}
    with Journal.open(tmp_path_factory.mktemp("bank") / "bank", {"model": "m"}) as journal:
        found = Bank(journal, subject.units, forms)
        subject.fill(found, torch.randint(2048, (2, 16)), metric("perplexity"), None, quiet)
        yield found


def test_so_many_blocks_that_no_cache_holds_them(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = LanguageSubject(demo_folder, CPU)
    assert subject.shallow() is subject  # small models whole
    block = sum(subject.checkpoint.tensor(n).numel() for n in subject.checkpoint.names if ".layers.1." in n)
    outside = subject.weights - 4 * block
    for blocks in (1, 2, 3):
        monkeypatch.setattr(shallow, "ENOUGH", outside + blocks * block)
        first: Any = subject.shallow()
        assert enough(subject.checkpoint, subject.kinds) == blocks
        assert (first.share, first.weights) == (blocks / 4, outside + blocks * block)
        assert set(first.kinds.values()) == set(subject.kinds.values())
    monkeypatch.setattr(shallow, "ENOUGH", subject.weights + 1)
    assert subject.shallow() is subject


def test_every_kind_of_layer_is_in_them(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shallow, "ENOUGH", 0)
    checkpoint = Checkpoint(demo_folder)
    assert enough(checkpoint, {"model.embed_tokens": "table", CACHE: CACHE}) == 1
    kinds = {f"model.layers.{n}.mlp.down_proj": "narrow" if n < 2 else "wide" for n in range(4)}
    assert enough(checkpoint, kinds) == 3


def test_a_candidate_of_the_first_blocks_runs(bank: Bank, demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shallow, "ENOUGH", 0)
    first = LanguageSubject(demo_folder, CPU).shallow()
    trial = first.assemble(bank, dict.fromkeys(first.units, SAFE), "")
    assert set(trial.timed()()) == {"prefill", "decode"}
    model = trial.open()
    assert isinstance(model, nn.Module)
    assert model.config.num_hidden_layers == 1  # type: ignore[union-attr]


def test_the_table_is_that_of_the_whole_model(bank: Bank, demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts bits: each form of a layer has its time, the cache one for each block."""

    def answer(_: LanguageSubject, folder: Path, scratch: object = None) -> Run:
        weights = read_manifest(folder)["weights"]
        layers = sum(len(name) + 100 / spec.get("bits", 16) for name, spec in weights.items())
        blocks = read_json(folder / "config.json")["num_hidden_layers"]
        cache = blocks * (3.0 if open_folder(folder, bare=True).cache == "int8" else 5.0)
        return lambda: {"prefill": 7 + layers, "decode": 1 + layers + cache}

    monkeypatch.setattr(LanguageSubject, "answer", answer)
    subject = LanguageSubject(demo_folder, CPU)
    units = {kind: next(unit for unit, own in subject.kinds.items() if own == kind) for kind in subject.kinds.values()}
    variants = {kind: [form for form in bank.options[unit] if form != SAFE] for kind, unit in units.items()}
    whole = measured_in(subject, bank, variants, quiet)
    monkeypatch.setattr(shallow, "ENOUGH", 0)
    part = measured_in(subject, bank, variants, quiet)
    assert part.base == pytest.approx(whole.base)
    assert part.added.keys() == whole.added.keys()
    for kind, forms in whole.added.items():
        assert part.added[kind].keys() == forms.keys()
        for form, parts in forms.items():
            assert part.added[kind][form] == pytest.approx(parts), (kind, form)
    assert whole.added[CACHE][ORIGINAL]["decode"] == pytest.approx(8)


def test_a_module_is_timed_whole(classifier: nn.Module) -> None:
    subject = ModuleSubject(classifier, torch.randn(4, 32), CPU)
    assert subject.shallow() is subject
