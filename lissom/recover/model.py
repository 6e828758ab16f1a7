"""Any module in memory, recovered: a copy of it learns, in its formats, what the original says, or the labels."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from types import MappingProxyType
from typing import Any

from torch import nn

from lissom.errors import DataError, ModelError, RecipeError
from lissom.formats import CompressedLayer, Trainable, unfreeze
from lissom.models import compressible, weight_of
from lissom.models.apart import apart, set_apart
from lissom.models.families import FAMILIES
from lissom.progress import Tell, quiet
from lissom.recover.feed import Examples, Feed, counted, feed
from lissom.recover.learner import Learner
from lissom.recover.lessons import Labels, Lesson, Original, Remembered
from lissom.recover.loop import Curve, Keeper, Until, learn
from lissom.recover.memory import Memory
from lissom.recover.moving import Moving, units_of
from lissom.recover.norms import batches_are_better
from lissom.recover.optimizers import make
from lissom.recover.parallel.laid import Laid, gather, lay
from lissom.recover.parallel.layout import Layout, check_layout
from lissom.recover.parallel.workers import ALONE, Workers, workers
from lissom.recover.training import EPOCHS, Training

AS_SAID = Training()
ALL: Layout = MappingProxyType({})  # workers have the whole model each


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """A model that has learned, trainable and in its formats, and how its loss went."""

    model: nn.Module
    curve: Curve


def recover_model(
    model: nn.Module,
    data: Any,
    training: Training = AS_SAID,
    *,
    original: nn.Module | None = None,
    held: Any = 0.05,
    layout: Layout = ALL,
    progress: Tell = quiet,
) -> Recovered:
    """A copy of a compressed model that has learned, in its formats, to do what the original does.

    Args:
        model: what `compress_model`, `quantize_model` or `load` gave, trained further or not; it is left as it is.
        data: one batch of all examples, as a tensor, (inputs, targets) or a dict; or batches, as a list of them or an
            iterable such as a DataLoader. Of a language model windows of tokens.
        training: how to learn; by default all that the formats can move, four passes of AdamW.
        original: the model that it was made from, whose predictions are learned; without it the data's labels are.
        held: the share of the data that is not learned from but judged by, or data of its own for that.
        layout: how workers that torchrun has started divide the work (`read_layout`); by default each has the whole
            model and learns from its share of every batch.
        progress: told of each look at what is held out.

    Raises:
        RecipeError: nothing can move as asked, or a knob of the optimizer is impossible.
        DataError: there is too little data, it has no labels to learn, or the loss is no number.
        ModelError: the original is another kind of model.
    """
    student = unfreeze(apart(copy.deepcopy(model)))
    fed = feed(data, batch=training.batch, held=held, seed=training.seed)
    if original is not None:
        begin_near(student, original)
    with workers() as team:
        memory = Memory(training.top_k, team=team)
        lesson = lesson_of(training, fed, None if original is None else lambda: original, memory)
        if team.count > 1:
            student.to(team.device)
        with learnable(student):
            curve, laid = recovered(student, fed, training, lesson, team=team, layout=layout, progress=progress)
        found = whole(laid, lambda: unfreeze(apart(copy.deepcopy(model))), training)
    return Recovered(model=found, curve=curve)


def lesson_of(
    training: Training, fed: Feed, original: Callable[[], nn.Module] | None, memory: Memory, progress: Tell = quiet
) -> Lesson:
    """What is to be learned; of an original that is remembered, whatever is not yet known is asked for now.

    Raises:
        DataError: only examples that are one tensor can be remembered.
        RecipeError: something is asked of an original, and there is none.
    """
    if original is None:
        if training.top_k or training.hidden or training.loss != "kl" or training.temperature != 1:
            raise RecipeError(
                "recover: hidden, top_k, loss and temperature are of an original; give it, or leave them out"
            )
        return Labels()
    if not training.top_k:
        return Original(
            original().eval(),
            training.loss,
            temperature=training.temperature,
            hidden=training.hidden,
            weight=training.hidden_weight,
        )
    if not isinstance(fed, Examples):
        raise DataError("recover: only answers to examples in one tensor are remembered; give such data, or top_k=0")
    memory.fill(fed, original, progress)
    return Remembered(memory)


def recovered(
    student: nn.Module,
    fed: Feed,
    training: Training,
    lesson: Lesson,
    *,
    team: Workers = ALONE,
    layout: Layout = ALL,
    keeper: Keeper | None = None,
    enough: Callable[[nn.Module], bool] | None = None,
    progress: Tell = quiet,
) -> tuple[Curve, Laid]:
    """Let a trainable model learn, in place; how its loss went, and how it is laid out."""
    if training.batch % team.count and isinstance(fed, Examples):
        raise DataError(
            f"batch={training.batch} cannot be shared among {team.count} workers; give a multiple of {team.count}"
        )
    check_layout(layout, team, training)
    if training.norms is None:
        training = replace(training, norms=bool(team.agreed(batches_are_better(student, lesson, fed.held))))
    units = units_of(student, training.train, training.rank, training.seed)
    laid = lay(student, layout, team, training=training, lesson=lesson, lot=fed.sample)
    if enough is not None and laid.pipeline is not None:
        raise RecipeError("recover: a budget is tested on a whole model, which with pipeline= no worker has")
    moves = Moving(student, {name: unit for name, unit in units.items() if name not in laid.absent}, laid.placed)
    optimizer = make(training.optimizer, moves.phi.values(), training.rate, **training.knobs)
    learner = Learner(laid=laid, moving=moves, optimizer=optimizer, lesson=lesson, training=training)
    curve = learn(learner, fed, until_of(training, fed), keeper=keeper, enough=enough, progress=progress)
    return curve, laid


def until_of(training: Training, fed: Feed) -> Until:
    """When it ends, for what is learned from.

    Raises:
        DataError: it is not known how long a pass is.
    """
    if training.minutes is not None:
        return Until(seconds=60 * training.minutes)
    if training.steps is not None:
        return Until(steps=training.steps)
    if training.tokens is not None:
        return Until(steps=ceil(training.tokens / counted(fed.sample.batch)))
    if fed.steps is None:
        raise DataError("recover: how long a pass over the data is cannot be known; give steps, tokens or minutes")
    return Until(steps=max(1, round((training.epochs or EPOCHS) * fed.steps)))


def whole(laid: Laid, fresh: Callable[[], nn.Module], training: Training, every: bool = True) -> nn.Module:
    """What has learned, by one worker that has all of it: a fresh model with what all have of it, else itself.

    All workers must call it; where it is not wanted by `every` one, the others give False and get what is theirs.
    """
    found = None
    if laid.sharded or laid.divided:
        found = fresh() if every else None
        if found is not None:
            units_of(found, training.train, training.rank, training.seed)  # puts what is beside the weights beside them
        gather(laid, found)
    laid.part()
    return laid.model if found is None else found


@contextmanager
def learnable(model: nn.Module) -> Iterator[None]:
    """Within the block a language model attends so that gradients pass, and keeps no cache."""
    config: Any = getattr(model, "config", None)
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if family is None:
        yield
        return
    before = config.use_cache, config._attn_implementation
    config.use_cache, config._attn_implementation = False, family.attends_by
    try:
        yield
    finally:
        config.use_cache, config._attn_implementation = before


def begin_near(student: nn.Module, original: nn.Module) -> None:
    """Let latent weights begin as near to the original's as they may be without changing a matrix.

    Layers that have lost channels begin where they are.

    Raises:
        ModelError: none of the compressed layers is one of the original's.
    """
    others = compressible(set_apart(original))
    layers = {name: layer for name, layer in compressible(student).items() if isinstance(layer, CompressedLayer)}
    if layers and not layers.keys() & others.keys():
        raise ModelError(
            f"recover: the original has no layer {next(iter(layers))!r}; give the model that this one was made from"
        )
    for name, layer in layers.items():
        if name in others and isinstance(layer.matrix, Trainable):
            weight = weight_of(others[name])
            if weight.shape == layer.weight.shape:
                layer.matrix.near(weight.dense())
