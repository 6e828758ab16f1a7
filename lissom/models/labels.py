"""Labels of the elements of a tensor, and which of them live and die together. Label 0 is what must stay."""

import torch
from jaxtyping import Int
from torch import Tensor

Label = Int[Tensor, "..."]


class Joined:
    """Labels, and which of them go together; 0 is always a root."""

    def __init__(self) -> None:
        self.parent = [0]

    def fresh(self, count: int) -> Label:
        """New labels, each on its own."""
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return torch.arange(first, first + count, device="cpu")

    def root(self, label: int) -> int:
        """The one that stands for all that are joined with this one."""
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def join(self, one: Label, other: Label) -> None:
        """Join element by element; where one is 0 the other must stay too."""
        pairs = torch.stack([one.flatten(), other.flatten()]).unique(dim=1)
        for a, b in pairs.T.tolist():
            low, high = sorted((self.root(a), self.root(b)))
            self.parent[high] = low

    def together(self, labels: Label) -> None:
        """Join all of them."""
        flat = labels.flatten()
        self.join(flat, flat[:1].expand_as(flat))

    def pin(self, labels: Label) -> None:
        """They must stay."""
        self.join(labels, torch.zeros_like(labels))


def compact(label: Label) -> Label | None:
    """Size 1 in the dims along which nothing changes; None where all must stay."""
    for d in range(label.dim()):
        first = label.narrow(d, 0, 1)
        label = first if label.shape[d] and bool((label == first).all()) else label
    return label if bool(label.any()) else None


def varying(label: Label) -> list[int]:
    """The dims along which a compact label changes."""
    return [d for d, size in enumerate(label.shape) if size > 1]


def padded(label: Tensor, shape: torch.Size) -> list[int]:
    """A shape with leading dims of size 1, as broadcasting takes it."""
    return [1] * (len(shape) - label.dim()) + list(label.shape)
