"""Dividing examples among calibrating, choosing and certifying; what certifies was never looked at before.

Examples that belong together, such as questions about one text, are a cluster: no two lots have a part in one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lissom.calibrate import Batch, batches
from lissom.calibrate.data import each, tensors
from lissom.calibrate.padding import MASK, padded
from lissom.errors import DataError
from lissom.evaluate import Budgets

CALIBRATE, CHOOSE = 0.2, 0.3  # the rest certifies


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Lots of examples with none in common.

    When choosing, `selection` is scored, and how far a candidate is from the original is seen on `outputs`: the same
    lot, unless what is scored is of another kind than what calibrates. `clusters` labels what certifies.
    """

    calibration: Batch
    outputs: Batch
    selection: Batch
    certification: Batch
    clusters: Int[Tensor, " n"] | None = None

    @property
    def units(self) -> int:
        """How many examples, or clusters of them, there are to certify by."""
        return count(self.certification) if self.clusters is None else len(self.clusters.unique())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that is in the lots."""
        lots = {part.name: getattr(self, part.name) for part in fields(self)}
        held = {name: tensors(lot) for name, lot in lots.items() if lot is not None}
        return {f"{name} {number}": part for name, parts in held.items() for number, part in enumerate(parts)}


def split(data: Any, budgets: Budgets, *, examples: Any = None, clusters: Any = None, seed: int = 0) -> Split:
    """Shuffle the examples and divide them.

    Args:
        data: what calibrates, and where there are no `examples` chooses and certifies too.
        budgets: those that are to be certified.
        examples: what is scored, where that is of another kind than what calibrates.
        clusters: an integer for each example that is scored; those of one stay together, side by side in one lot.
        seed: of the order.

    Raises:
        DataError: too few would be left to certify with; the message says how many are needed.
    """
    given = joined(data)
    scored = given if examples is None else joined(examples)
    labels = None if clusters is None else labelled(clusters, count(scored))
    shares = (CALIBRATE, CALIBRATE + CHOOSE) if examples is None else (CHOOSE / (1 - CALIBRATE),)
    *first, last = dealt(count(scored), shares, labels, seed)
    check_enough(labels, last, 1 - shares[-1], count(scored), budgets)
    if examples is None:
        calibration, outputs = (taken(given, lot) for lot in first)
        selection = outputs
    else:
        both = dealt(count(given), (CALIBRATE / (CALIBRATE + CHOOSE),), None, seed)
        calibration, outputs = (taken(given, lot) for lot in both)
        selection = taken(scored, first[0])
    return Split(
        calibration=calibration,
        outputs=outputs,
        selection=selection,
        certification=taken(scored, last),
        clusters=None if labels is None else labels[last],
    )


def dealt(n: int, shares: Sequence[float], labels: Tensor | None, seed: int) -> list[Int[Tensor, "..."]]:
    """The numbers of n examples in random order, cut at these shares; at the end of a cluster, where there are some.

    Raises:
        DataError: a lot would be empty.
    """
    draw = torch.Generator().manual_seed(seed)
    cuts = [int(round(n * share, 6)) for share in shares]
    if labels is None:
        order = torch.randperm(n, generator=draw)
    else:
        places = torch.randperm(len(labels.unique()), generator=draw)[labels.unique(return_inverse=True)[1]]
        order = places.argsort(stable=True)
        cuts = [int((places <= places[order[max(cut - 1, 0)]]).sum()) for cut in cuts]
    lots = list(order.tensor_split(cuts))
    if not all(map(len, lots)):
        of = f" in {len(labels.unique())} clusters" if labels is not None else ""
        raise DataError(f"data: {n} examples{of} are too few to divide among {len(lots)} lots; give more")
    return lots


def check_enough(labels: Tensor | None, last: Tensor, share: float, n: int, budgets: Budgets) -> None:
    """See that the last lot, a share of all n examples, can certify the budgets.

    Raises:
        DataError: it cannot.
    """
    found, units, noun = len(last), n, "examples"
    if labels is not None:
        found, units, noun = len(labels[last].unique()), len(labels.unique()), "clusters of examples"
    fewest, budget = max(((kind.fewest_examples(own), own) for kind, own in budgets.items()), key=lambda one: one[0])
    if found < fewest:
        needed = -(-fewest * 1000 // round(1000 * share))
        raise DataError(
            f"data: {units} {noun} are too few to certify a drop of {budget.max_drop:.2%} at {budget.confidence:.0%} "
            f"confidence; at least {needed} are needed, of which {fewest} certify"
        )


def labelled(clusters: Any, n: int) -> Int[Tensor, " n"]:
    """The labels of clusters, one for each example.

    Raises:
        DataError: they are something else.
    """
    labels = torch.as_tensor(clusters)
    if labels.shape != (n,) or labels.is_floating_point():
        found = f"{list(labels.shape)} of {str(labels.dtype).removeprefix('torch.')}"
        raise DataError(f"clusters: found {found}, where an integer for each of {n} examples is needed")
    return labels


def count(examples: Batch) -> int:
    """How many there are."""
    return len(tensors(examples)[0])


def taken(examples: Batch, which: Int[Tensor, " n"]) -> Batch:
    """Some of the examples."""
    return each(examples, lambda part: part[which])


def joined(data: Any) -> Batch:
    """All batches as one; texts, told by their `attention_mask`, become as wide as the longest.

    Raises:
        DataError: there are none, or they do not fit together.
    """
    found: Any = list(batches(data))
    if not found:
        raise DataError("data: no examples are in it; give a list, a DataLoader or tensors")
    if len(found) > 1 and all(isinstance(batch, Mapping) and MASK in batch for batch in found):
        found = padded(found)
    check_alike(found)
    first: Batch = found[0]
    if isinstance(first, Tensor):
        return torch.cat([tensors(batch)[0] for batch in found])
    if isinstance(first, tuple):
        return tuple(torch.cat(parts) for parts in zip(*map(tensors, found), strict=True))
    return {name: torch.cat([batch[name] for batch in found]) for name in first}


def check_alike(found: Sequence[Batch]) -> None:
    """See that examples of all batches have the same shape.

    Raises:
        DataError: they have not.
    """
    told = [in_words(batch) for batch in found]
    other = next((one for one in told if one != told[0]), None)
    if other is not None:
        raise DataError(
            f"data: one batch has examples of {told[0]}, another of {other}; give all in one shape, or texts as a dict "
            f"with their {MASK}, by which they are padded to one width"
        )


def in_words(batch: Batch) -> str:
    """The shape of an example, of each tensor; by name where they have names, in whatever order those come."""
    if isinstance(batch, Mapping):
        return " and ".join(f"{name} {list(batch[name].shape[1:])}" for name in sorted(batch))
    return " and ".join(str(list(part.shape[1:])) for part in tensors(batch))
