"""Training algorithms by name, with defaults that do: PyTorch's own where it has them, else one file, one paper.

    sgd momentum nesterov    Robbins, Monro 1951; Polyak 1964; Nesterov 1983, as Sutskever et al., ICML 2013
    adagrad rmsprop          Duchi, Hazan, Singer, JMLR 2011; Hinton's lecture 6e, 2012
    adam adamw               Kingma, Ba, ICLR 2015; Loshchilov, Hutter, ICLR 2019
    adamw8 lion schedulefree sam
    muon                     Jordan et al., 2024; of matrices, at rates of AdamW's size (Liu et al., 2025,
                             arXiv:2502.16982), to which all else is left

`make` makes one; what it gives is an `Optimizer` like any other, whose `step` takes a closure (`sam` needs it).
"""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import optim
from torch.nn import Parameter
from torch.optim import Optimizer

from lissom.errors import RecipeError, meant
from lissom.recover.optimizers.adamw8 import AdamW8
from lissom.recover.optimizers.lion import Lion
from lissom.recover.optimizers.sam import Sam
from lissom.recover.optimizers.schedule_free import ScheduleFree
from lissom.recover.optimizers.together import Together

__all__ = [
    "OPTIMIZERS",
    "AdamW8",
    "Lion",
    "Sam",
    "ScheduleFree",
    "Together",
    "judging",
    "make",
    "put_state",
    "state_of",
]


def muon(params: Any, lr: float = 1e-3, apart: Collection[Parameter] = (), **knobs: Any) -> Optimizer:
    """Muon for matrices, AdamW for what is none, or is to stay `apart`: embeddings, heads, scales."""
    left = {id(p) for p in apart}
    held = list(params)
    matrices = [p for p in held if p.dim() == 2 and id(p) not in left]
    chosen = {id(p) for p in matrices}
    parts: list[Optimizer] = []
    if matrices:
        parts.append(optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw", **{"weight_decay": 0.0, **knobs}))
    if others := [p for p in held if id(p) not in chosen]:
        parts.append(optim.AdamW(others, lr=lr, weight_decay=knobs.get("weight_decay", 0.0)))
    return parts[0] if len(parts) == 1 else Together(parts)


def sam(params: Any, lr: float | None = None, base: str = "momentum", rho: float = 0.05, **knobs: Any) -> Optimizer:
    """SAM over another of the optimizers."""
    return Sam(make(base, params, lr, **knobs), rho)


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "sgd": partial(optim.SGD, lr=1e-2),
    "momentum": partial(optim.SGD, lr=1e-2, momentum=0.9),
    "nesterov": partial(optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
    "adagrad": partial(optim.Adagrad, lr=1e-2),
    "rmsprop": partial(optim.RMSprop, lr=1e-3),
    "adam": partial(optim.Adam, lr=1e-3),
    "adamw": partial(optim.AdamW, lr=1e-3),
    "adamw8": AdamW8,
    "lion": Lion,
    "muon": muon,
    "schedulefree": ScheduleFree,
    "sam": sam,
}


def make(name: str, params: Iterable[Parameter], lr: float | None = None, **knobs: Any) -> Optimizer:
    """An optimizer by its name.

    Args:
        name: one of `OPTIMIZERS`.
        params: what is to move.
        lr: the rate; by default what does for the algorithm.
        knobs: as the algorithm has them, by name.

    Raises:
        RecipeError: there is none of the name, it has no such knob, or nothing is to move.
    """
    if name not in OPTIMIZERS:
        raise RecipeError(f"optimizer: {name!r} is none of {', '.join(OPTIMIZERS)}{meant(name, OPTIMIZERS)}")
    held = [p for p in params if p.requires_grad]
    if not held:
        raise RecipeError(f"optimizer: {name} has nothing to move; no parameter requires a gradient")
    maker = OPTIMIZERS[name]
    given = {**knobs, **({} if lr is None else {"lr": lr})}
    try:
        inspect.signature(maker).bind(held, **given)
        return maker(held, **given)
    except TypeError:
        possible = [own for own, p in inspect.signature(maker).parameters.items() if p.kind != p.VAR_KEYWORD]
        raise RecipeError(f"optimizer: {name} takes {', '.join(possible[1:])}, not {', '.join(given)}") from None
    except ValueError as error:
        raise error if isinstance(error, RecipeError) else RecipeError(f"optimizer: {name}: {error}") from None


def holders(optimizer: Optimizer) -> list[Optimizer]:
    """Those that hold its states: itself, the one that it goes by, or those that it is made of."""
    inner = optimizer.base if isinstance(optimizer, Sam) else optimizer
    return inner.parts if isinstance(inner, Together) else [inner]


def state_of(optimizer: Optimizer, names: Mapping[Any, str]) -> dict[str, Any]:
    """Where an optimizer stands: what it holds of each parameter, by what that is and the parameter's name.

    So it does not matter in which order parameters come, nor which other ones there are.
    """
    held: dict[str, dict[str, Any]] = {}
    for part in holders(optimizer):
        for p, state in part.state.items():
            for what, value in state.items():
                held.setdefault(what, {})[names[p]] = value
    groups = [group for part in holders(optimizer) for group in part.param_groups]
    return {"held": held, "groups": [{key: own for key, own in group.items() if key != "params"} for group in groups]}


def put_state(
    optimizer: Optimizer, state: Mapping[str, Any], names: Mapping[Parameter, str], placed: Callable[..., Any]
) -> None:
    """The inverse of `state_of`; `placed(parameter, value)` is what belongs here of what is held of one."""
    groups = [group for part in holders(optimizer) for group in part.param_groups]
    for group, own in zip(groups, state["groups"], strict=True):
        group.update(own)
    for part in holders(optimizer):
        for p in [p for group in part.param_groups for p in group["params"]]:
            several = {what: by_name[names[p]] for what, by_name in state["held"].items() if names[p] in by_name}
            part.state[p] = {what: placed(p, value) for what, value in several.items()}


@contextmanager
def judging(optimizer: Optimizer) -> Iterator[None]:
    """Within the block the parameters are what is to be judged and kept: of schedule-free its averages."""
    free = optimizer if isinstance(optimizer, ScheduleFree) else None
    if free:
        free.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if free:
            free.train()
