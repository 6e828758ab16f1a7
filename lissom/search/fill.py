"""Filling a bank: one pass over the data, in which every form of every layer is made, and what each would cost is seen.

Of a module in memory that is foreseen by its slopes (`tangent.py`), and where a form leads too far for that it is
measured, a unit at a time (`yardstick.py`). Of a language model on disk, whose blocks come and go, it is foreseen by
products of second moments (`sensitivity.py`).

Shapes: n windows, t tokens.
"""

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.calibrate.observe import Collected
from lissom.compress.layers import look, steps_on
from lissom.compress.norms import apply, remember, remembered
from lissom.compress.plan import wanted
from lissom.engine.cache import kind_of_cache
from lissom.errors import DataError, LissomError, RecipeError
from lissom.formats import Weight
from lissom.models import Checkpoint, compressible, replace, weight_of
from lissom.models.attention import attend_in_8_bits
from lissom.progress import Progress, Tell
from lissom.search.bank import Bank
from lissom.search.foresee import streamed
from lissom.search.forms import CACHE, HELD
from lissom.search.sensitivity import Option, Steps
from lissom.search.tangent import Tangent
from lissom.search.yardstick import Yardstick
from lissom.statistics import Gram
from lissom.techniques import NORM
from lissom.techniques.recover.norms import Norm

Made = tuple[Weight, Norm | None]  # of a layer, and what the batch norm behind it is to remember

FAR = {True: 0.1, False: 0.001}  # nats, or share of the outputs' power: beyond it slopes do not tell (docs/log.md)
TOKENS = 4096  # of the data, on which the cache is looked at


def fill_from_module(
    bank: Bank, model: nn.Module, data: Batch, yardstick: Yardstick, norms: Mapping[str, str], tell: Tell
) -> None:
    """Every form of every layer of a module; what is in the bank already is not made again.

    A form of a unit is looked at once all its layers are in it, and the batch norms behind these, `norms`, have been
    told of it; each of them is charged with its share.
    """
    layers, missing = compressible(model), bank.missing()
    kinds = wanted({layer: [step for f in forms for step in bank.forms[layer][f]] for layer, forms in missing.items()})
    seen = look(model, {layer: layers[layer] for layer in kinds}, kinds, data) if kinds else {}
    units = {unit: own for unit, own in bank.units.items() if any(layer in missing for layer in own)}
    there = len(bank.units) - len(units)
    for done, (unit, tangent) in enumerate(with_slopes(units, model, norms, yardstick, tell), there + 1):
        own, made = units[unit], dict[str, dict[str, Made]]()
        for form in bank.forms[unit]:
            if not any(form in missing.get(layer, ()) for layer in own):
                continue
            try:
                made[form] = in_form(bank, unit, form, model, norms, seen)
            except RecipeError as refusal:
                for layer in own:
                    bank.refuse(layer, form, refusal)
        changing = {form: with_forms(model, whole, norms) for form, whole in made.items() if bank.forms[unit][form]}
        far = dict.fromkeys(made, 0.0) | how_far(own, changing, tangent, yardstick)
        for form, whole in made.items():
            for layer, (weight, norm) in whole.items():
                nbytes = 0 if layer != unit and weight is whole[unit][0] else weight.nbytes
                option = Option(steps=bank.forms[layer][form], nbytes=nbytes, error=0.0, kl=far[form] / len(own))
                bank.keep(layer, form, option, weight, norm)
        tell(Progress(stage="calibrate", text=unit, done=done, total=len(bank.units)))


def with_slopes(
    units: Mapping[str, tuple[str, ...]], model: nn.Module, norms: Mapping[str, str], yardstick: Yardstick, tell: Tell
) -> Iterator[tuple[str, Tangent | None]]:
    """Each unit, with the slopes at its layers, if the module has any and an example alone may go through it.

    Where not, it is told why and all is measured, where what is wrong with the module or the data comes up again.
    """
    tangent = Tangent(model, norms, yardstick)
    try:
        tangent.look([layer for own in units.values() for layer in own], 1)
    except (LissomError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        tell(Progress(stage="calibrate", text=f"no slopes, so every form is measured ({why:.120})"))
        yield from ((unit, None) for unit in units)
        return
    for lot in tangent.lots(units):
        yield from ((unit, tangent) for unit in lot)


def how_far(
    layers: Collection[str], changed: Mapping[str, nn.Module], tangent: Tangent | None, yardstick: Yardstick
) -> dict[str, float]:
    """How far twins with some layers in other forms are, foreseen where the slopes tell and else measured."""
    found = dict.fromkeys(changed, math.inf)
    if tangent is not None:
        found = dict(zip(changed, tangent.distances(layers, list(changed.values())), strict=True))
    bound = FAR[yardstick.by.logits]
    return {form: far if far < bound else yardstick.distance(changed[form]) for form, far in found.items()}


def with_forms(model: nn.Module, made: Mapping[str, Made], norms: Mapping[str, str]) -> nn.Module:
    """A twin with layers in other forms, and the norms behind them told so."""
    changed = twin(model)
    replace(changed, {layer: weight for layer, (weight, _) in made.items()}, compressible(changed), trainable=False)
    for layer, (_, norm) in made.items():
        if norm is not None:
            remember(changed.get_submodule(norms[layer]), norm)
    return changed


@torch.no_grad()
def in_form(
    bank: Bank, unit: str, form: str, model: nn.Module, norms: Mapping[str, str], seen: dict[str, Collected]
) -> dict[str, Made]:
    """The layers of a unit in a form, and the norms behind them; those that share a matrix share what it becomes.

    Raises:
        RecipeError: the form does not suit one of them.
    """
    layers, made = compressible(model), dict[str, Made]()
    for layer in bank.units[unit]:
        weight = weight_of(layers[layer])
        shared = layers[layer].weight is layers[unit].weight and unit in made
        if form not in bank.forms[layer] and not shared:
            raise RecipeError(f"{layer} has no form {form!r}")
        steps, found = bank.forms[unit if shared else layer][form], seen.get(layer)
        telling = [step for step in steps if step.technique in NORM]
        acting = [step for step in steps if step.technique not in NORM]
        new = made[unit][0] if shared else steps_on(layer, weight, acting, found, weight)
        norm: Norm | None = None
        for step in telling:
            before = remembered(model.get_submodule(norms[layer]))
            norm = apply(step, layer, before, new, weight, (found or {}).get(Gram))
        made[layer] = new, norm
    return made


def twin(model: nn.Module) -> nn.Module:
    """A copy of the modules, not of their tensors."""
    return copy.deepcopy(model, {id(held): held for held in chain(model.parameters(), model.buffers())})


def fill_from_checkpoint(
    bank: Bank, checkpoint: Checkpoint, windows: Int[Tensor, "n t"], max_ram: int | None, tell: Tell
) -> None:
    """Every form of every layer of a language model; what is in the bank already is not made again.

    Raises:
        DataError: a layer is not used when the model runs on the windows, or `max_ram` is too little.
    """
    missing = {layer: forms for layer, forms in bank.missing().items() if layer != CACHE}
    candidates: dict[str, list[Steps]] = {
        layer: [bank.forms[layer][form] for form in forms] for layer, forms in missing.items()
    }

    def keep(layer: str, number: int, option: Option, weight: Weight) -> None:
        bank.keep(layer, missing[layer][number], option, weight)

    if candidates:
        there, total = len(bank.forms) - len(missing), len(bank.forms)
        made_of = streamed(checkpoint, windows, candidates, max_ram, keep)
        for done, (layer, found) in enumerate(made_of, there + 1):
            for form, made in zip(missing[layer], found, strict=True):
                if isinstance(made, RecipeError):
                    bank.refuse(layer, form, made)
            tell(Progress(stage="calibrate", text=layer, done=done, total=total))
    silent = [layer for layer in bank.missing() if layer != CACHE]
    if silent:
        raise DataError(f"data: {silent[0]} is not used when the model runs on it; give other data")


def fill_cache(bank: Bank, model: nn.Module, yardstick: Yardstick) -> None:
    """The forms of the cache of a language model: bytes of a token in it, and what rounding it is measured to cost."""
    config: Any = model.config
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wide = 2 if kind_of_cache("auto", config) == "bfloat16" else 4
    token = {"auto": heads * size * wide, "int8": heads * (size + 4)}  # bytes, with a float for each scale
    for form, kind in HELD.items():
        kl = yardstick.distance(attend_in_8_bits(twin(model))) if kind == "int8" else 0.0
        option = Option(steps=(), nbytes=0, error=0.0, kl=kl)
        bank.keep(CACHE, form, option, None, token_bytes=token[kind], numbers=heads * size)
