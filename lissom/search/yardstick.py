"""A yardstick: what the original says to some examples, remembered, and how far other models are from it.

Their scores are compared on all examples, by each metric, their outputs on the first few: where these are logits by
KL(original ‖ model), in nats per prediction, else by ‖f - g‖² / E ‖f‖², the squared error of an example's output beside
what the original's are on the average. Who can tell from a part of the examples may stop after it.

Shapes: n examples, p predictions, c classes.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lissom.calibrate import Batch, call
from lissom.calibrate.spill import Spill, joined
from lissom.compress.layers import said
from lissom.estimate import Array, Estimate, mean_estimate
from lissom.evaluate import Comparison, Metric, paired
from lissom.evaluate.agreement import divergence
from lissom.evaluate.compare import Paired
from lissom.evaluate.examples import array, evaluating
from lissom.evaluate.metric import Output, lots, read

ROOM = 256 * 2**20  # bytes of what is remembered
EXAMPLES, TOKENS = 512, 4096  # whose outputs are compared, at most; whichever is fewer
LOOKS, FEWEST = (16, 8, 4, 2), 16  # the parts of the examples after which one may stop, where they are so many
Scores = dict[str, list[Array]]
Enough = Callable[[Mapping[str, Comparison]], bool]


class Yardstick:
    """What some metrics make of the original.

    Args:
        original: the model that others are compared with.
        data: the examples that are scored.
        kinds: the metrics; none where only distances are asked for.
        outputs: the examples whose outputs are compared, and the metric that reads them; by default those that are
            scored, and the first metric.
    """

    def __init__(
        self, original: nn.Module, data: Any, kinds: Collection[Metric], outputs: tuple[Any, Metric] | None = None
    ) -> None:
        self.data, self.kinds = data, list(kinds)
        self.near, self.by = outputs or (data, self.kinds[0])
        self.reads: Output = self.by.output if self.by.logits else raw
        self.alone = [kind for kind in self.kinds if kind.against is None]  # which score what one model says
        self.original = original if len(self.alone) < len(self.kinds) else None  # who is not asked again may go
        self.outputs: list[Tensor] = []
        self.spill = Spill()
        self.few, self.every = 1, 1
        self.scores = self.run(original, self.remember)
        power = torch.cat([total(output.float().square()) for output in self.outputs]).mean()
        self.spill.forget()
        self.power = float(power.clamp(min=torch.finfo(torch.float32).tiny))

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        """The examples whose outputs are compared."""
        return lots(self.near, self.kinds if self.near is self.data else [self.by], model)

    def run(
        self, model: nn.Module, see: Callable[[Tensor], bool], stop: Callable[[Scores], bool] = lambda scores: False
    ) -> Scores:
        """The scores of a model by each metric, batch by batch; `see` is given outputs for as long as it asks for more.

        Where the same examples are scored and compared, a model runs once on each for all that reads the same output.
        When it is seen whatever it asked for, `stop` may say that no more scores are wanted.
        """
        scores: Scores = {kind.name: [] for kind in self.alone}
        more, apart = True, self.near is not self.data
        with evaluating(model):
            for batch in self.batches(model) if apart else ():
                if not see(self.reads(model, batch)):
                    break
            for batch in lots(self.data, self.kinds, model) if self.kinds else ():
                known: dict[Output, Tensor] = {}
                if more and not apart:
                    more = see(read(self.reads, model, batch, known))
                for kind in self.alone:
                    scores[kind.name].append(array(kind.score(read(kind.output, model, batch, known), batch)))
                if (apart or not more) and (not self.alone or stop(scores)):
                    break
        return scores

    def remember(self, output: Tensor) -> bool:
        """Keep what the original says; whether more is wanted."""
        if not self.outputs:
            self.few = EXAMPLES if output.dim() < 3 else min(EXAMPLES, max(1, TOKENS // output.shape[1]))
            if output.dim() > 2:
                self.every = -(-self.few * output[0].nbytes // ROOM)
        self.outputs.append(self.remembered(output))
        return sum(map(len, self.outputs)) < self.few

    def kept(self, output: Tensor) -> Tensor:
        """Of several predictions for an example some, where all would be too many to remember."""
        return output[:, :: self.every].clone() if self.every > 1 else output

    def remembered(self, output: Tensor) -> Tensor:
        """What is kept of an output, on disk where the outputs are many."""
        found = self.kept(output)
        return joined([found], len(found), self.spill) if output.dim() > 2 else found

    def apart(self, before: Tensor, output: Tensor) -> Tensor:
        """How far outputs are from what was said before, example by example; rounding may not lead below nothing."""
        after = self.kept(output)
        there = before.to(after.device)  # what waits on disk is on no other device
        if self.by.logits:
            found = divergence(there, after).clamp(min=0)
        else:
            found = total((after - there).square()) / self.power
        self.spill.forget()
        return found

    def distance(self, model: nn.Module) -> float:
        """How far a model is from the original."""
        with evaluating(model):
            outputs = (self.reads(model, batch) for batch in self.batches(model))
            found = [self.apart(before, output) for before, output in zip(self.outputs, outputs, strict=False)]
        return float(torch.cat(found).mean())

    def compare(
        self, model: nn.Module, enough: Enough = lambda figures: False
    ) -> tuple[dict[str, Comparison], Estimate]:
        """A model's scores beside the original's, by each metric, and how far it is.

        `enough` is asked after a sixteenth, an eighth, a quarter and a half of the examples, once the distance is
        known, whether the figures will do.
        """
        parts: list[Tensor] = []
        whole = len(next(iter(self.scores.values()), ()))
        looks = [-(-whole // part) for part in LOOKS]

        def see(output: Tensor) -> bool:
            parts.append(self.apart(self.outputs[len(parts)], output))
            return len(parts) < len(self.outputs)

        def stop(scores: Scores) -> bool:
            found = scores[self.alone[0].name]
            done, few = len(found), sum(map(len, found)) < FEWEST
            if self.original is not None or few or done == whole or not looks or done < looks[0]:
                return False
            looks[:] = [look for look in looks if look > done]
            return enough({kind.name: Comparison.of(self.pair(kind, model, scores)) for kind in self.kinds})

        scores = self.run(model, see, stop)
        far = mean_estimate(torch.cat(parts).tolist(), unit="nats" if self.by.logits else "")
        return {kind.name: Comparison.of(self.pair(kind, model, scores)) for kind in self.kinds}, far

    def pair(self, kind: Metric, model: nn.Module, scores: Scores) -> Paired:
        """The scores of the original and of a model, for as many examples as the latter has."""
        if self.original is not None and kind.against is not None:
            return paired(self.original, model, self.data, kind)
        found = scores[kind.name]
        before, after = (kind.together(own) for own in (self.scores[kind.name][: len(found)], found))
        return Paired(metric=kind, original=before, compressed=after)


def total(values: Tensor) -> Tensor:
    """The sum for each example [n, ...]."""
    return values.reshape(len(values), -1).sum(1)


def raw(model: nn.Module, batch: Batch) -> Tensor:
    """What a model says to a batch."""
    return said(model, call(model, batch)).float()
