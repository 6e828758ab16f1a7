"""Filling a bank: one pass over the data, in which every form of every layer is made, and what each would cost is seen.

Of a module in memory that is measured, a unit at a time in another form (`yardstick.py`). Of a language model on disk,
whose blocks come and go, it is foreseen (`sensitivity.py`).

Shapes: n windows, t tokens.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lissom.calibrate import Batch
from lissom.calibrate.observe import Collected
from lissom.compress.layers import look, steps_on
from lissom.engine.cache import kind_of_cache
from lissom.errors import DataError, RecipeError
from lissom.formats import Weight
from lissom.models import Checkpoint, compressible, replace, weight_of
from lissom.models.attention import attend_in_8_bits
from lissom.progress import Progress, Tell
from lissom.search.bank import Bank
from lissom.search.foresee import streamed
from lissom.search.forms import CACHE, HELD
from lissom.search.prefix import Prefix
from lissom.search.sensitivity import Option, Steps, kinds_of
from lissom.search.yardstick import Yardstick

TOKENS = 4096  # of the data, on which the cache is looked at


def fill_from_module(bank: Bank, model: nn.Module, data: Batch, yardstick: Yardstick, tell: Tell) -> None:
    """Every form of every layer of a module; what is in the bank already is not made again.

    A form of a unit is looked at once all its layers are in it, and each of them is charged with its share.
    """
    layers, missing = compressible(model), bank.missing()
    kinds = {layer: kinds_of([bank.forms[layer][form] for form in forms]) for layer, forms in missing.items()}
    seen = look(model, {layer: layers[layer] for layer in kinds}, kinds, data) if kinds else {}
    for done, (unit, own) in enumerate(bank.units.items(), 1):
        made: dict[str, dict[str, Weight]] = {}
        for form in bank.forms[unit]:
            if not any(form in missing.get(layer, ()) for layer in own):
                continue
            try:
                made[form] = in_form(bank, unit, form, layers, seen)
            except RecipeError as refusal:
                for layer in own:
                    bank.refuse(layer, form, refusal)
        far = dict.fromkeys(made, 0.0)
        changing = {form: weights for form, weights in made.items() if bank.forms[unit][form]}
        far |= zip(changing, apart_by(model, own, list(changing.values()), yardstick), strict=True)
        for form, weights in made.items():
            for layer, weight in weights.items():
                nbytes = 0 if layer != unit and weight is weights[unit] else weight.nbytes
                option = Option(steps=bank.forms[layer][form], nbytes=nbytes, error=0.0, kl=far[form] / len(own))
                bank.keep(layer, form, option, weight)
        tell(Progress(stage="calibrate", text=unit, done=done, total=len(bank.units)))


def apart_by(
    model: nn.Module, layers: Collection[str], forms: Sequence[Mapping[str, Weight]], yardstick: Yardstick
) -> list[float]:
    """How far a module is from the original with some layers in each of several forms; what comes before is shared."""
    if not forms:
        return []
    prefix, changed = Prefix(model, layers), [twin(model) for _ in forms]
    for one, weights in zip(changed, forms, strict=True):
        replace(one, weights, compressible(one), trainable=False)
        prefix.let(one)
    return yardstick.distances(changed, prefix)


@torch.no_grad()
def in_form(
    bank: Bank, unit: str, form: str, layers: dict[str, nn.Module], seen: dict[str, Collected]
) -> dict[str, Weight]:
    """The layers of a unit in a form; those that share a matrix share what it becomes.

    Raises:
        RecipeError: the form does not suit one of them.
    """
    made = dict[str, Weight]()
    for layer in bank.units[unit]:
        weight = weight_of(layers[layer])
        shared = layers[layer].weight is layers[unit].weight and unit in made
        if form not in bank.forms[layer] and not shared:
            raise RecipeError(f"{layer} has no form {form!r}")
        steps = bank.forms[unit if shared else layer][form]
        made[layer] = made[unit] if shared else steps_on(layer, weight, steps, seen.get(layer), weight)
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
