"""A bank: what is in it is what compressing by a recipe makes, with what it costs; what is there is not made again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from lissom.artifact import open_folder
from lissom.artifact.journal import Journal
from lissom.calibrate import token_windows
from lissom.calibrate.data import each
from lissom.compress import compress_model
from lissom.engine.lower import lower
from lissom.errors import DataError
from lissom.evaluate import metric
from lissom.formats import CompressedLayer
from lissom.progress import Progress, quiet
from lissom.search import fill
from lissom.search.bank import Bank
from lissom.search.fill import fill_cache
from lissom.search.forms import CACHE, ORIGINAL, SAFE
from lissom.search.language import LanguageSubject
from lissom.search.module import ModuleSubject
from lissom.search.parity import answer, differences
from lissom.search.subject import Subject
from lissom.search.yardstick import Yardstick
from lissom.types import Recipe

CPU = torch.device("cpu")
FEW = (ORIGINAL, SAFE, "4 bits", "half pruned, 8 bits")


def bank_of(subject: Subject, journal: Journal) -> Bank:
    """A bank of a few of the forms."""
    forms = {layer: {f: own[f] for f in FEW if f in own} for layer, own in subject.forms.items()}
    return Bank(journal, subject.units, forms)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "bank", {"model": "m"}) as opened:
        yield opened


def test_layers_from_the_bank_are_those_that_the_recipe_makes(
    classifier: nn.Module, examples: tuple[Tensor, Tensor], journal: Journal
) -> None:
    lot = each(examples, lambda part: part[:256])
    subject = ModuleSubject(classifier, lot, CPU)
    bank = bank_of(subject, journal)
    told: list[Progress] = []
    subject.fill(bank, lot, metric("accuracy"), None, told.append)
    assert [str(event) for event in told] == list(subject.units)
    assert [(event.done, event.total) for event in told] == [(1, 2), (2, 2)]
    assert bank.missing() == {}
    choice = dict(zip(subject.units, ("4 bits", "half pruned, 8 bits"), strict=True))
    recipe = bank.recipe(choice, "mixed")
    ours, theirs = subject.with_layers(bank, choice), compress_model(classifier, lot, steps=recipe.steps)
    for name in subject.units:
        one, other = (model.get_submodule(name) for model in (ours, theirs))
        assert isinstance(one, CompressedLayer)
        assert isinstance(other, CompressedLayer)
        assert torch.equal(one.weight.dense(), other.weight.dense())
    trial = subject.assemble(bank, choice, "mixed")
    assert trial.nbytes == sum(bank.options[u][f].nbytes for u, f in choice.items()) + subject.beside


@pytest.mark.parametrize("measured", [True, False])
def test_what_a_form_costs_is_the_distance_with_that_form_alone(
    classifier: nn.Module,
    examples: tuple[Tensor, Tensor],
    journal: Journal,
    measured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit where it is beyond what slopes tell, else about."""
    if measured:
        monkeypatch.setattr(fill, "FAR", {True: 0.0, False: 0.0})
    lot = each(examples, lambda part: part[:256])
    subject = ModuleSubject(classifier, lot, CPU)
    bank, kind = bank_of(subject, journal), metric(lambda model, batch: torch.zeros(len(batch[0])))
    subject.fill(bank, lot, kind, None, quiet)
    rod = Yardstick(classifier, lot, [kind])
    for unit in subject.units:
        alone = subject.with_layers(bank, {**dict.fromkeys(subject.units, ORIGINAL), unit: "4 bits"})
        assert bank.options[unit]["4 bits"].kl == pytest.approx(rod.distance(alone), rel=1e-6 if measured else 0.2)
        assert bank.options[unit][ORIGINAL].kl == 0


def test_what_is_there_is_not_made_again(
    classifier: nn.Module, examples: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle, the second run makes the rest, and all is as if it had never been stopped."""
    lot = each(examples, lambda part: part[:256])
    subject, kind = ModuleSubject(classifier, lot, CPU), metric("accuracy")
    with Journal.open(tmp_path / "whole", {}) as journal:
        whole = bank_of(subject, journal)
        subject.fill(whole, lot, kind, None, quiet)
        names = journal.names()
        records = {name: journal.read(name) for name in names}

    class Stopped(Exception):
        pass

    def stop(event: Progress) -> None:
        raise Stopped

    with pytest.raises(Stopped), Journal.open(tmp_path / "bank", {}) as journal:
        subject.fill(bank_of(subject, journal), lot, kind, None, stop)
    with Journal.open(tmp_path / "bank", {}) as journal:
        bank = bank_of(subject, journal)
        missing = [f"{layer} {form}" for layer, forms in bank.missing().items() for form in forms]
        assert 0 < len(missing) < len(names)
        kept: list[str] = []
        keep = journal.keep
        monkeypatch.setattr(journal, "keep", lambda name, *given: (kept.append(name), keep(name, *given)))
        subject.fill(bank, lot, kind, None, quiet)
        assert sorted(kept) == sorted(missing)
        assert {name: journal.read(name) for name in names} == records
    files = [sorted((tmp_path / folder / "files").iterdir()) for folder in ("whole", "bank")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_a_form_that_does_not_suit_is_no_option(examples: tuple[Tensor, Tensor], journal: Journal) -> None:
    model = nn.Sequential(nn.Linear(32, 5), nn.Linear(5, 4))
    lot = each(examples, lambda part: part[:64])
    subject = ModuleSubject(model, lot, CPU)
    forms = {**subject.forms, "1": {**subject.forms["1"], "4 bits": subject.forms["0"]["4 bits"]}}  # 32 in 5 inputs
    bank = Bank(journal, subject.units, forms)
    subject.fill(bank, lot, metric("accuracy"), None, quiet)
    assert "4 bits" in bank.options["0"]
    assert "4 bits" not in bank.options["1"]
    assert bank.missing() == {}


def test_a_language_model_is_put_together_from_the_bank(demo_folder: Path, journal: Journal) -> None:
    text = (demo_folder / "stories.txt").read_text(encoding="utf-8")
    windows = token_windows(text, AutoTokenizer.from_pretrained(demo_folder), 24)[:8]
    subject = LanguageSubject(demo_folder, CPU)
    bank = bank_of(subject, journal)
    subject.fill(bank, windows, metric("perplexity"), None, quiet)
    choice = {unit: SAFE if "embed" in unit else "4 bits" for unit in subject.units} | {CACHE: ORIGINAL}
    trial = subject.assemble(bank, choice, "mixed")
    other = subject.compress(trial.recipe, windows)
    assert trial.nbytes == other.nbytes
    with torch.no_grad():  # the recipe sees the same, but in the type that the checkpoint is stored in
        log_p, log_q = (model.open()(windows).logits.log_softmax(-1) for model in (trial, other))
    assert float((log_p.exp() * (log_p - log_q)).sum(-1).mean()) < 0.02
    assert all(own["4 bits"].kl > own[SAFE].kl > 0 for unit, own in bank.options.items() if "layers" in unit)
    assert set(trial.timed()()) == {"prefill", "decode"}


def test_the_cache_is_a_unit_without_bytes_that_is_written_down(
    demo_folder: Path, tmp_path: Path, journal: Journal
) -> None:
    """In 8 bits it costs what the engine's rounding is measured to cost, and the folder is opened so."""
    text = (demo_folder / "stories.txt").read_text(encoding="utf-8")
    windows = token_windows(text, AutoTokenizer.from_pretrained(demo_folder), 24)[:16]
    subject = LanguageSubject(demo_folder, CPU)
    bank = Bank(journal, {CACHE: subject.units[CACHE]}, {CACHE: subject.forms[CACHE]})
    fill_cache(bank, subject.original, Yardstick(subject.original, (), (), (windows, metric("perplexity"))))
    assert bank.missing() == {}
    assert bank.options[CACHE][SAFE].nbytes == 0
    assert bank.options[CACHE][SAFE].kl > bank.options[CACHE][ORIGINAL].kl == 0
    assert bank.record(f"{CACHE} {SAFE}")["token_bytes"] == 4 * 2 * 2 * (64 + 4)
    subject.compress_into(tmp_path / "model", Recipe(), windows[:0], {CACHE: SAFE})
    trial = subject.reopened(tmp_path / "model", Recipe())
    opened = open_folder(trial.write(tmp_path / "small", {}))
    assert opened.cache == "int8"
    rounded = trial.open()
    with torch.no_grad():
        logits = rounded(windows).logits
        assert torch.equal(logits, lower(opened.model)(windows).logits)
        assert not torch.equal(logits, subject.original(windows).logits)
    asked, told = tmp_path / "asked.safetensors", tmp_path / "told.safetensors"
    save_file({"0": windows}, asked)
    answer(str(opened.folder), str(asked), str(told), "true")
    assert differences(logits[:, -1], load_file(told)).max() < 0.01  # by the engine


@pytest.mark.parametrize("prompt", [0, 1008])
def test_what_is_timed_has_room(demo_folder: Path, prompt: int) -> None:
    assert LanguageSubject(demo_folder, CPU, 1007).timing()[1:] == [1007, 16]
    with pytest.raises(DataError, match=f"prompt: {prompt} tokens cannot be timed .* choose 1 to 1007"):
        LanguageSubject(demo_folder, CPU, prompt)


class Normed(nn.Module):
    """A small network with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one = nn.Linear(32, 48), nn.BatchNorm1d(48)
        self.second, self.two = nn.Linear(48, 32), nn.BatchNorm1d(32)
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.first(x)).relu()
        return self.out(self.two(self.second(x)).relu())  # type: ignore[no-any-return]


def test_norms_are_part_of_the_forms(examples: tuple[Tensor, Tensor], journal: Journal) -> None:
    """What is put together from the bank is what the recipe makes, norms too; what these are told brings it nearer."""
    torch.manual_seed(0)
    model, (x, labels) = Normed(), examples
    learning = torch.optim.Adam(model.parameters(), 0.01)
    for lot in torch.arange(1024).split(64):
        learning.zero_grad()
        nn.functional.cross_entropy(model(x[lot]), labels[lot]).backward()
        learning.step()
    subject = ModuleSubject(model, (x[:256], labels[:256]), CPU)
    assert subject.norms == {"first": "one", "second": "two"}
    forms = {layer: {f: own[f] for f in (ORIGINAL, "2 bits")} for layer, own in subject.forms.items()}
    bank = Bank(journal, subject.units, forms)
    subject.fill(bank, (x[:256], labels[:256]), metric("accuracy"), None, quiet)
    choice = {"first": "2 bits", "second": "2 bits", "out": ORIGINAL}
    recipe = bank.recipe(choice, "two bits")
    assert [step.technique for step in recipe.steps] == ["gptq", "gptq", "norms", "norms"]
    mixed = subject.with_layers(bank, choice)
    made = compress_model(model.eval(), x[:256], steps=recipe.steps)
    for name, held in mixed.named_buffers():
        if name.startswith(("one", "two")):
            assert torch.allclose(held, made.get_buffer(name), rtol=1e-4)
    assert not mixed.one.running_var.equal(model.one.running_var)
    assert subject.original.one.running_var.equal(model.one.running_var)
    plain = compress_model(model, x[:256], steps=[step for step in recipe.steps if step.technique == "gptq"])
    yardstick = Yardstick(subject.original, (), (), ((x[:256], labels[:256]), metric("accuracy")))
    assert yardstick.distance(mixed) < 0.9 * yardstick.distance(plain)
