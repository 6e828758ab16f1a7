"""The page docs/quality.md: every number on it comes from the run that wrote it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from resnet import CALIBRATION as IMAGES
from table import Row, language_table, markdown, span, vision_table
from wikilm import CALIBRATION, GROUP, LENGTH, SERVED_INT4, Parity

from lissom.estimate import Estimate, paired_difference

WITHIN = 0.01  # of the peer's perplexity


@dataclass(slots=True, kw_only=True)
class Run:
    """What a run has found so far."""

    command: str
    threads: int
    machine: dict[str, str]
    versions: dict[str, str]
    language: list[Row] = field(default_factory=list)
    parities: list[Parity] = field(default_factory=list)
    vision: list[Row] = field(default_factory=list)
    peers: list[Row] = field(default_factory=list)

    def beside(self, peer: Row) -> Estimate:
        """How much higher our perplexity is than the peer's, as a fraction, paired window by window."""
        ours = named(self.language, SERVED_INT4)
        return paired_difference(peer.scores.compressed, ours.scores.compressed, bounds=None, relative=True)


def named(rows: Sequence[Row], name: str) -> Row:
    """The row of that name."""
    return next(row for row in rows if row.name == name)


def page(run: Run) -> str:
    """The whole page."""
    said = [
        "# Quality",
        "",
        f"Written on {date.today()} by the command below; no number was typed in. `make bench-quality` prints the "
        "same tables.",
        "",
        "```text",
        run.command,
        "```",
        "",
        *reading(run),
        "",
        *language(run),
        "",
        *parity(run.parities),
        "",
        *vision(run.vision),
        "",
        "## Machine and versions",
        "",
        *(f"- {name}: {value}" for name, value in (run.machine | run.versions).items()),
    ]
    return "\n".join(said) + "\n"


def reading(run: Run) -> list[str]:
    """What the tables say, in sentences."""
    said = ["## Reading", ""]
    said += [f"- {against_peer(run, peer)}" for peer in run.peers]
    for bits in (4, 3):
        of_bits = [
            row for row in run.language if f", {bits} bits," in row.name and not row.name.endswith(("kernel", "search"))
        ]
        said.append(f"- At {bits} bits, by KL divergence, from the best: {ordered(of_bits)}.")
    pruned = [row for row in run.language if row.name.endswith(("2:4", "50 %"))]
    said.append(f"- Half of the weights pruned, likewise: {ordered(pruned)}.")
    width = max((row.figures.drop.high - row.figures.drop.low) / 2 for row in run.vision)
    said.append(
        f"- On ResNet-20 {run.vision[0].figures.original.n:,} images leave a drop uncertain by up to {100 * width:.1f} "
        "points either way: rows that lie closer together are not told apart."
    )
    said.append(
        "- One small model, calibrated on text of the kind it is tested on. The intervals are over the test windows, "
        "not over other models or other calibration texts."
    )
    return said


def against_peer(run: Run, peer: Row) -> str:
    """Our GPTQ beside the peer's, in a sentence."""
    ours, gap = named(run.language, SERVED_INT4), run.beside(peer)
    met = "inside" if gap.high <= WITHIN else "not surely inside" if gap.value <= WITHIN else "outside"
    return (
        f"GPTQ at 4 bits and group {GROUP}, lissom's default with its clipping search: perplexity "
        f'{ours.figures.compressed.value:.3f}, and {peer.figures.compressed.value:.3f} of "{peer.name}" on the same '
        f"calibration tokens; a paired difference of "
        f"{span(gap, '+.2f', 100)} %, {met} the target of {WITHIN:.0%} above the peer at most. "
        f"The KL divergence is {ours.figures.kl.value / peer.figures.kl.value:.2f} times the peer's."
    )


def ordered(rows: Sequence[Row]) -> str:
    """The names of rows by what they cost in KL divergence."""
    best = sorted(rows, key=lambda row: row.figures.kl.value)
    return "; ".join(f"{row.name} ({row.figures.kl.value:.4f})" for row in best)


def language(run: Run) -> list[str]:
    """The protocol and the table of the language model."""
    n = run.language[0].scores.original.size
    missing = "" if run.peers else " llm-compressor was not run: `--peer-python` names an interpreter that has it."
    return [
        "## Language model: wikilm, WikiText-2",
        "",
        f"Llama architecture, {run.language[0].weights:,} weights, counted with the embedding, which is the head too. "
        f"The test text is tokenized whole without special tokens and cut into windows of {LENGTH}; the first {n} are "
        "scored from their second token, in float32, with the compressed weights decoded. Calibration: the first "
        f"{CALIBRATION} windows of {LENGTH} tokens of the calibration text, for every row. Unless a row says so, the "
        "embedding is left in bfloat16 and only the linear layers of the blocks are compressed; integers are "
        "symmetric. Intervals hold with 95 %, windows being the samples; the change of perplexity is paired, window by "
        "window.",
        "",
        "Bits per weight are 8 times the bytes of the safetensors files over all weights of the model; of "
        "llm-compressor, which computed in float32, untouched tensors count as the bfloat16 they were. Seconds are "
        f"those that the processor worked on compressing; threads: {run.threads}.{missing}",
        "",
        *language_table([*run.language, *run.peers]),
    ]


def parity(found: Sequence[Parity]) -> list[str]:
    """What is served is what is evaluated."""
    head = ("model", "largest difference of a logit", "largest logit", "same top-1 %", "positions")
    body = [
        (p.name, f"{p.largest_difference:.2g}", f"{p.largest_logit:.1f}", f"{100 * p.same_top1:.1f}", f"{p.tokens}")
        for p in found
    ]
    return [
        "### Served and evaluated",
        "",
        "The engine continues a prompt of the test text, token by token with its paged cache; the same model, with the "
        "same kernels, is then run over the whole in one pass, as the evaluation does. The kernels take activations in "
        "bfloat16 and give bfloat16, so that a last bit that differs in the attention can move what they give by a "
        "step of bfloat16; a row's result does not depend on the rows beside it. With decoded weights all is float32.",
        "",
        *markdown(head, body),
    ]


def vision(rows: Sequence[Row]) -> list[str]:
    """The protocol and the table of the classifier."""
    return [
        "## ResNet-20, CIFAR-10",
        "",
        f"{rows[0].weights:,} weights, published by others. Accuracy on the first {rows[0].figures.original.n:,} test "
        f"images, with exact pixels; calibration on {IMAGES} training images. Each model is saved, loaded again and "
        "evaluated. Nothing is trained afterwards. The drop and the flips are paired, image by image; the batch "
        "normalisations stay in float32 and are counted in the bytes.",
        "",
        *vision_table(rows),
    ]
