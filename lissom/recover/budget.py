"""Until it is certified to be inside a budget: asked of a model while it learns, whenever it was never better."""

from dataclasses import dataclass, field, replace
from operator import itemgetter

from torch import nn

from lissom.calibrate import Batch
from lissom.calibrate.data import each
from lissom.errors import DataError
from lissom.estimate import Certificate
from lissom.evaluate import Budgets, certify_models
from lissom.recover.feed import size

TRIES = 3  # certificates that are asked for, at most; each may err with a third of the error that all may make


@dataclass(slots=True, kw_only=True)
class Inside:
    """Whether a model is inside its budgets: by one half of the examples, and where it is, for certain, by the other.

    The examples must not be learned from. The certificate is that of the last try.
    """

    original: nn.Module
    examples: Batch
    budgets: Budgets
    certificate: Certificate | None = field(init=False, default=None)
    tried: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if size(self.examples) < 4:
            raise DataError(
                f"budget: {size(self.examples)} examples are too few to choose and to certify by; give more"
            )

    def __call__(self, model: nn.Module) -> bool:
        """See, and remember the certificate."""
        half = size(self.examples) // 2
        chooses, certifies = (each(self.examples, itemgetter(part)) for part in (slice(half), slice(half, None)))
        if self.tried == TRIES or not passed(certify_models(self.original, model, chooses, self.budgets)):
            return False
        self.tried += 1
        surer = {kind: replace(b, confidence=1 - (1 - b.confidence) / TRIES) for kind, b in self.budgets.items()}
        self.certificate = certify_models(self.original, model, certifies, surer, planned=size(certifies))
        return passed(self.certificate)


def passed(certificate: Certificate) -> bool:
    """Whether it says so."""
    return certificate.verdict == "PASS"
