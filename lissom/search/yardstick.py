"""A yardstick: what the original says to some examples, remembered, and how far other models are from it.

Their scores are compared on all examples, their outputs on the first few: where these are logits by KL(original ‖
model), in nats per prediction, else by ‖f - g‖² / E ‖f‖², the squared error of an example's output beside what the
original's are on the average.

Shapes: n examples, p predictions, c classes.
"""

from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lissom.calibrate import Batch, call
from lissom.calibrate.spill import Spill, joined
from lissom.compress.layers import said
from lissom.estimate import Estimate, mean_estimate
from lissom.evaluate import Comparison, Metric, paired
from lissom.evaluate.agreement import divergence
from lissom.evaluate.compare import Paired
from lissom.evaluate.examples import array, evaluating, pieces

ROOM = 256 * 2**20  # bytes of what is remembered
EXAMPLES, TOKENS = 512, 4096  # whose outputs are compared, at most; whichever is fewer


class Yardstick:
    """What a metric makes of the original."""

    def __init__(self, original: nn.Module, data: Any, kind: Metric) -> None:
        self.data, self.kind = data, kind
        self.original = None if kind.against is None else original  # who is not asked again need not stay in memory
        self.outputs: list[Tensor] = []
        self.spill = Spill()
        self.scores: list[Any] = []
        self.every = 1
        seen = 0
        with evaluating(original):
            for number, batch in enumerate(self.batches(original)):
                output = self.said(original, batch)
                if not number:
                    few = EXAMPLES if output.dim() < 3 else min(EXAMPLES, max(1, TOKENS // output.shape[1]))
                    if output.dim() > 2:
                        self.every = -(-few * output[0].nbytes // ROOM)
                if seen < few:
                    self.outputs.append(self.remembered(output))
                if kind.against is None:
                    self.scores.append(self.graded(original, output, batch))
                seen += len(output)
        power = torch.cat([output.square().flatten(1).sum(1) for output in self.outputs]).mean()
        self.spill.forget()
        self.power = float(power.clamp(min=torch.finfo(torch.float32).tiny))

    def batches(self, model: nn.Module) -> Any:
        """The examples, as many at a time as the metric says."""
        return pieces(self.data, self.kind.examples, model, self.kind.tokens)

    def said(self, model: nn.Module, batch: Batch) -> Tensor:
        """What a model says to a batch: what the metric reads, where that is logits."""
        return self.kind.output(model, batch) if self.kind.logits else said(model, call(model, batch)).float()

    def kept(self, output: Tensor) -> Tensor:
        """Of several predictions for an example some, where all would be too many to remember."""
        return output[:, :: self.every].clone() if self.every > 1 else output

    def remembered(self, output: Tensor) -> Tensor:
        """What is kept of an output, on disk where the outputs are many."""
        found = self.kept(output)
        return joined([found], len(found), self.spill) if output.dim() > 2 else found

    def graded(self, model: nn.Module, output: Tensor, batch: Batch) -> Any:
        """The scores of a batch."""
        read = output if self.kind.logits else self.kind.output(model, batch)
        return array(self.kind.score(read, batch))

    def apart(self, before: Tensor, output: Tensor) -> Tensor:
        """How far outputs are from what was said before, example by example; rounding may not lead below nothing."""
        after = self.kept(output)
        if self.kind.logits:
            return divergence(before, after).clamp(min=0)
        return (after - before).square().flatten(1).sum(1) / self.power

    def distance(self, model: nn.Module) -> float:
        """How far a model is from the original."""
        with evaluating(model):
            batches = islice(self.batches(model), len(self.outputs))
            found = [self.apart(o, self.said(model, batch)) for o, batch in zip(self.outputs, batches, strict=True)]
        self.spill.forget()
        return float(torch.cat(found).mean())

    def compare(self, model: nn.Module) -> tuple[Comparison, Estimate]:
        """A model's scores beside the original's, and how far it is."""
        parts: list[Tensor] = []
        scores = []
        with evaluating(model):
            for number, batch in enumerate(self.batches(model)):
                output = self.said(model, batch)
                if number < len(self.outputs):
                    parts.append(self.apart(self.outputs[number], output))
                elif self.kind.against is not None:
                    break
                if self.kind.against is None:
                    scores.append(self.graded(model, output, batch))
        self.spill.forget()
        far = mean_estimate(torch.cat(parts).tolist(), unit="nats" if self.kind.logits else "")
        if self.original is not None:
            return Comparison.of(paired(self.original, model, self.data, self.kind)), far
        before, after = (self.kind.together(graded) for graded in (self.scores, scores))
        return Comparison.of(Paired(metric=self.kind, original=before, compressed=after)), far
