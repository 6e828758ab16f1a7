"""Modifiers that prune, as steps.

What SparseML prunes while a model learns is pruned here at once, to its last sparsity; `lissom recover` learns then.
"""

from collections.abc import Mapping
from typing import Any

from lissom.compress.sparseml.layers import PRUNABLE, listed
from lissom.compress.sparseml.quantize import rounded
from lissom.compress.sparseml.work import LINEAR, Handler, Work, number, refused
from lissom.types import Knob, Step

NONE = ("unstructured", "0:0", "")  # patterns that are none


def constant(args: dict[str, Any], work: Work) -> list[Step]:
    """Zeros that stay zeros: nothing more is removed."""
    return kept_zeros(work.layers.meant(named(args)), work)


def kept_zeros(names: list[str], work: Work) -> list[Step]:
    """Steps after which what is zero is known as pruned, of the layers that have zeros enough for that."""
    found = [name for name in names if name in work.layers.meant(PRUNABLE) and work.layers.sparse(name)]
    if not found:
        work.note("no layer that it names has zeros enough to be a mask")
    return [Step(technique="magnitude", layers=one, knobs={"sparsity": 0.0}) for one in work.layers.groups(found)]


def by_magnitude(args: dict[str, Any], work: Work) -> list[Step]:
    """The smallest weights go; the last sparsity may be one for all, or a mapping from sparsities to layers."""
    if args.pop("global_sparsity", False) or args.pop("apply_globally", False):
        raise refused(work, "one threshold for all layers", "write sparsities that lissom.allocate_sparsity finds")
    last, ignore = args.pop("final_sparsity", None), args.pop("ignore", ())
    structure = args.pop("mask_structure", args.pop("mask_type", "unstructured"))
    targets = named(args)
    lots = dict(last) if isinstance(last, Mapping) else {last: targets}
    found = list[Step]()
    for sparsity, names in lots.items():
        knobs = pattern(structure, sparsity, work, pruned_first=False)
        meant = work.layers.meant(names, ignore)
        found += [Step(technique="magnitude", layers=one, knobs=knobs) for one in work.layers.groups(meant)]
    return found


def named(args: dict[str, Any]) -> Any:
    """The targets of a modifier, which older files call params."""
    given = [args.pop(name) for name in ("targets", "params") if name in args]
    return given[0] if given else PRUNABLE


def sparsegpt(args: dict[str, Any], work: Work) -> list[Step]:
    """Columns one by one; then, where the modifier says so, integers."""
    damp = {"damp": number(work, name, args[name])} if (name := "dampening_frac") in args else {}
    keeps, rounds = args.pop("preserve_sparsity_mask", False), args.pop("quantize", False)
    pruning: dict[str, Any] = {name: args.pop(name) for name in ("targets", "ignore") if name in args}
    before = kept_zeros(meant_by(pruning, work), work) if keeps else []
    found = before + one_shot("sparsegpt", damp, args, pruning, work)
    whole = rounded(rounds, args, work) if rounds else []
    args.pop("dampening_frac", None)
    return found + whole


def wanda(args: dict[str, Any], work: Work) -> list[Step]:
    """By what is listened to."""
    pruning: dict[str, Any] = {name: args.pop(name) for name in ("targets", "ignore") if name in args}
    return one_shot("wanda", {}, args, pruning, work)


def one_shot(
    technique: str, more: Mapping[str, Knob], args: dict[str, Any], pruning: Mapping[str, Any], work: Work
) -> list[Step]:
    """Steps of a technique for the layers of what targets name, which may have sparsities of their own."""
    if args.pop("sparsity_profile", None):
        raise refused(work, "sparsity_profile", "write sparsities that lissom.allocate_sparsity finds")
    structure, sparsity = args.pop("mask_structure", "0:0"), args.pop("sparsity", None)
    lots = [(sparsity, pruning.get("targets") or LINEAR)]
    if isinstance(sparsity, list):
        lots = list(zip(sparsity, places(pruning.get("targets") or LINEAR, len(sparsity), work), strict=True))
    found = list[Step]()
    for own, targets in lots:
        names = meant_by({**pruning, "targets": targets}, work)
        knobs = {**pattern(structure, own, work, pruned_first=True), **more}
        if knobs.get("sparsity") != 0:
            found += [Step(technique=technique, layers=one, knobs=knobs) for one in work.layers.groups(names)]
    return found


def meant_by(pruning: Mapping[str, Any], work: Work) -> list[str]:
    """The layers in all that targets name."""
    return work.layers.meant(pruning.get("targets") or LINEAR, pruning.get("ignore", ()), inside=True)


def places(targets: Any, count: int, work: Work) -> list[str]:
    """The modules that targets name, each of which has a sparsity of its own.

    Raises:
        RecipeError: there are more or fewer of them.
    """
    wanted = listed("targets", targets)
    modules = [name for name, _ in work.layers.model.named_modules() if name]
    found = [name for name in modules if any(work.layers.names_it(one, name, False) for one in wanted)]
    if len(found) != count:
        raise refused(work, f"sparsity is {count} numbers and targets name {len(found)} modules", "write one for each")
    return found


def pattern(structure: Any, sparsity: Any, work: Work, *, pruned_first: bool) -> dict[str, Knob]:
    """The knobs of a mask's structure. Of N:M older files keep N of M weights; `pruned_first` ones prune so many."""
    if structure in NONE:
        return {"sparsity": number(work, "sparsity", sparsity)}
    two = "2:4" if structure == "tensorrt" else str(structure)
    first, _, of = two.partition(":")
    if not (first.isdecimal() and of.isdecimal() and 0 < int(first) < int(of)):
        raise refused(work, f"mask structure {structure!r}", "possible are 'unstructured' and patterns such as '2:4'")
    return {"keep": int(of) - int(first) if pruned_first else int(first), "of": int(of)}


PRUNE: Mapping[str, Handler] = {
    "ConstantPruningModifier": constant,
    "GMPruningModifier": by_magnitude,
    "MagnitudePruningModifier": by_magnitude,
    "OBCQModifier": sparsegpt,
    "SparseGPTModifier": sparsegpt,
    "WandaPruningModifier": wanda,
}
