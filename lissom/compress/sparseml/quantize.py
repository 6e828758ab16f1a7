"""Modifiers that quantize, and those that make a model ready for that, as steps."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lissom.compress.sparseml.form import Asked
from lissom.compress.sparseml.layers import by_prefix, listed
from lissom.compress.sparseml.schemes import Scheme, preset, scheme
from lissom.compress.sparseml.work import LINEAR, Grouped, Handler, Work, number, refused
from lissom.errors import RecipeError
from lissom.models.families import Link
from lissom.types import Knob, Step

OWN = ("scheme", "config_groups", "scheme_overrides", "submodules")  # what says how to round
PARTS = {"weights", "input_activations", "output_activations"}
FIRST = ("GPTQModifier", "OBCQModifier", "SparseGPTModifier")  # which round what another has told
ORDER = "actorder"  # None says that columns keep their order
ROUNDS = ("QuantizationModifier", "GPTQModifier", "AutoRoundModifier", "vLLMQuantizationModifier")
DEFAULT = {"weights": {"symmetric": True}, "input_activations": {"symmetric": False}}  # SparseML's
EVEN = {"weights": {"symmetric": True}, "input_activations": {"symmetric": True}}
SCHEMES = {"default": DEFAULT, "deepsparse": DEFAULT, "tensorrt": EVEN}


def quantization(args: dict[str, Any], work: Work) -> list[Step]:
    """To the nearest; where a later modifier is to round what this one tells, nothing yet."""
    found = grouped(args, work)
    heir = next((asked.name for asked in work.later if takes_over(asked)), None)
    if heir is not None:
        work.waiting = found
        work.note(f"its scheme is that of {heir}")
        return []
    return steps_of(found, work)


def takes_over(asked: Asked) -> bool:
    """Whether a modifier rounds what one before it has told."""
    told = any(name in asked.args for name in OWN)
    return asked.name in FIRST and not told and asked.args.get("quantize", asked.name == "GPTQModifier") is True


def gptq(args: dict[str, Any], work: Work) -> list[Step]:
    """Column by column."""
    nested = args.pop("quantize", True)
    return rounded(nested if isinstance(nested, Mapping) else True, args, work)


def rounded(nested: Any, args: dict[str, Any], work: Work) -> list[Step]:
    """Integers by GPTQ: of the schemes of a nested modifier, of the modifier itself, or of what waits.

    Raises:
        RecipeError: there are none.
    """
    more: dict[str, Knob] = {}
    if "dampening_frac" in args:
        more["damp"] = number(work, "dampening_frac", args.pop("dampening_frac"))
    if ORDER in args:
        more["act_order"] = bool(args.pop(ORDER))
    if isinstance(nested, Mapping):
        inner = dict(next(iter(nested.values())) or {})
        found = grouped(inner, work)
        work.note(*(f"{name}={value!r}" for name, value in inner.items()))
    elif any(name in args for name in OWN):
        found = grouped(args, work)
    else:
        found, work.waiting = work.waiting, []
        args.pop("targets", None)
    if not found:
        raise refused(work, "integers without a scheme", "write scheme: W4A16, or a QuantizationModifier before it")
    if any(one.kind for _, one in found):
        work.note("floats are rounded to the nearest")
    return steps_of(found, work, "gptq", **more)


def autoround(args: dict[str, Any], work: Work) -> list[Step]:
    """To the nearest, and then what is rounded to is learned block by block."""
    found = grouped(args, work)
    iterations = int(number(work, "iters", args.pop("iters", 200)))
    names = [name for own, _ in found for name in own]
    learned = [
        Step(technique="tuned", layers=one, knobs={"iterations": iterations}) for one in work.layers.groups(names)
    ]
    return steps_of(found, work) + learned


def steps_of(found: Grouped, work: Work, technique: str = "rtn", **more: Knob) -> list[Step]:
    """The steps of layers with their schemes."""
    steps = list[Step]()
    for names, own in found:
        work.note(*own.notes)
        steps += [step for one in work.layers.groups(names) for step in own.steps(one, technique, **more)]
    return steps


def grouped(args: dict[str, Any], work: Work) -> Grouped:
    """Layers and their schemes, as a modifier tells them; each layer goes by what names it most closely.

    Raises:
        RecipeError: a scheme has no counterpart, or targets name no layer.
    """
    given, groups = args.pop("scheme", None), args.pop("config_groups", None)
    targets, ignore = args.pop("targets", None) or LINEAR, args.pop("ignore", None) or ()
    if args.pop("kv_cache_scheme", None):
        work.note("keys and values are held in 8 bits by `lissom serve --kv-cache int8`")
    observer = str(args.pop("weight_observer", "") or (args.pop("observer", None) or {}))
    lots: list[tuple[Any, Scheme | None]]
    if groups:
        lots = [(own.get("targets", LINEAR), scheme(own)) for own in groups.values()]
    elif isinstance(given, str) and given not in SCHEMES:
        lots = [(targets, preset(given))]
    elif isinstance(given, Mapping) and not PARTS & set(given):
        lots = [(own, preset(str(name))) for name, own in given.items()]
    else:
        return older(given, targets, listed("ignore", ignore), args, work)
    meant = {name for own, _ in lots for name in work.layers.meant(own, ignore)}
    found: list[list[str]] = [[] for _ in lots]
    for name in (one for one in work.layers.names if one in meant):
        ranks = [work.layers.rank(own, name) for own, _ in lots]
        found[ranks.index(min(ranks))].append(name)
    schemes = [one and replace(one, clip=one.clip or "mse" in observer) for _, one in lots]
    return [(names, one) for names, one in zip(found, schemes, strict=True) if names and one is not None]


def older(given: Any, targets: Any, ignore: list[str], args: dict[str, Any], work: Work) -> Grouped:
    """As SparseML told it: one scheme, others for some modules, and modules that are left out, by how names begin."""
    overrides, only = args.pop("scheme_overrides", None) or {}, args.pop("submodules", None)
    bits = {"weights": args.pop("weight_bits", None), "input_activations": args.pop("activation_bits", None)}
    whole = dict(given if isinstance(given, Mapping) else SCHEMES[given or "default"])
    for part, own in bits.items():
        if own is not None:
            whole[part] = {**(whole.get(part, DEFAULT[part]) or {}), "num_bits": own}
    out, inside = by_prefix(ignore), by_prefix(listed("submodules", only) or [""])
    kinds = "__ALL_QUANTIZABLE__" if targets == LINEAR else targets
    found: dict[str, list[str]] = {}
    for name in work.layers.meant(kinds):
        module = work.layers.model.get_submodule(name)
        if not out(name, module) and inside(name, module):
            own = max((one for one in overrides if by_prefix([one])(name, module)), key=len, default="")
            found.setdefault(own, []).append(name)
    schemes = {own: chosen(overrides[own] if own else whole, whole, work) for own in found}
    return [(names, one) for own, names in found.items() if (one := schemes[own]) is not None]


def chosen(given: Any, whole: Mapping[str, Any], work: Work) -> Scheme | None:
    """A scheme of SparseML: a mapping, the name of one, or none at all.

    Raises:
        RecipeError: no scheme has such a name.
    """
    if given in (None, "null"):
        return None
    named = {**SCHEMES, "default": whole}
    if isinstance(given, str) and given not in named:
        raise refused(work, f"scheme {given!r}", f"there are {', '.join(named)}")
    return scheme({**DEFAULT, **(named[given] if isinstance(given, str) else given)}, symmetric=False)


def smooth(args: dict[str, Any], work: Work) -> list[Step]:
    """Activations evened out, before they are quantized."""
    if args.pop("algorithm", "smoothquant") != "smoothquant":
        raise refused(work, "log_equalization", "leave out algorithm, for SmoothQuant's own formula")
    alpha = number(work, "smoothing_strength", args.pop("smoothing_strength", 0.5))
    chosen = linked(args, work, norms=True)
    return [Step(technique="smooth", layers=one, knobs={"alpha": alpha}) for one in work.layers.groups(chosen)]


def awq(args: dict[str, Any], work: Work) -> list[Step]:
    """Channels scaled for the integers that they become: of its own scheme, which then rounds, or of what follows.

    Raises:
        RecipeError: neither is there.
    """
    own = grouped(args, work) if any(name in args for name in OWN) else []
    later = next((asked for asked in work.later if asked.name in ROUNDS), None)
    found = own or (grouped(dict(later.args), work) if later is not None else [])
    held = next((one for _, one in found if not one.kind), None)
    if held is None:
        raise refused(
            work, "scaling without integers", "write a QuantizationModifier with a scheme such as W4A16 after it"
        )
    knobs: dict[str, Knob] = {"bits": held.bits, "group": held.group}
    knobs |= {} if held.symmetric else {"symmetric": False}
    chosen = linked(args, work, norms=False)
    scaled = [Step(technique="awq", layers=one, knobs=knobs) for one in work.layers.groups(chosen)]
    return scaled + (steps_of(own, work) if own else [])


def linked(args: dict[str, Any], work: Work, *, norms: bool) -> list[str]:
    """Layers that name the links to be scaled: those that mappings say, or all; with `norms` only those behind norms.

    Raises:
        RecipeError: there are none, or how layers are linked is not known.
    """
    mappings, ignore = args.pop("mappings", None), listed("ignore", args.pop("ignore", None) or ())
    links, layers = work.layers.links(), work.layers
    pairs = [pair_of(one) for one in mappings or ()]
    if not links:
        if not pairs:
            raise refused(work, f"mappings of {type(layers.model).__name__} left to be found", "write them")
        return [layers.meant(readers[0])[0] for readers, _ in pairs]

    def wanted(link: Link) -> bool:
        if any(layers.names_it(one, name, False) for one in ignore for name in link.makers):
            return False
        if not pairs:
            return not norms or not any(name in layers.names for name in link.makers)
        return any(
            any(layers.names_it(one, name, False) for one in readers for name in link.readers)
            and any(layers.names_it(maker, name, False) for name in link.makers)
            for readers, maker in pairs
        )

    found = {link.makers[0]: layers.sole(link, links) for link in links if wanted(link)}
    work.note(*(f"behind {maker} nothing is scaled, for no step names it alone" for maker, n in found.items() if not n))
    named = [name for name in found.values() if name is not None]
    if not named:
        raise refused(work, "what its mappings name", "they must name a norm or a layer, and the layers that read it")
    return named


def pair_of(mapping: Any) -> tuple[list[str], str]:
    """The readers and the maker of a mapping, in either of the ways that they are written.

    Raises:
        RecipeError: it is neither.
    """
    if isinstance(mapping, Mapping):
        mapping = (mapping.get("balance_layers"), mapping.get("smooth_layer"))
    if not isinstance(mapping, list | tuple) or len(mapping) < 2 or not isinstance(mapping[1], str) or not mapping[0]:
        raise RecipeError(f"recipe: {mapping!r} is no mapping; write [[the layers that read], the one that makes]")
    return listed("mappings", mapping[0]), mapping[1]


QUANTIZE: Mapping[str, Handler] = {
    "AWQModifier": awq,
    "AutoRoundModifier": autoround,
    "GPTQModifier": gptq,
    "LegacyQuantizationModifier": quantization,
    "QuantizationModifier": quantization,
    "SmoothQuantModifier": smooth,
    "vLLMQuantizationModifier": quantization,
}
