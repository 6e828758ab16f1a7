"""The page docs/quality.md: every number on it was measured by the command that it names, or by an earlier one."""

from collections.abc import Sequence

import cost
import encoder
import resnet
from reading import best, reading
from recipes import TABLES
from run import Run
from table import Row, kl_ratio, language_table, markdown, span
from wikilm import CALIBRATION, LENGTH


def page(run: Run) -> str:
    """The whole page."""
    said = [*heading(run), *reading(run), *language(run), *others(run), *made_with(run)]
    return "\n".join(said) + "\n"


def heading(run: Run) -> list[str]:
    """When, and by which command."""
    dates = run.dates() or ["never"]
    return [
        "# Quality",
        "",
        f"Measured from {dates[0]} to {dates[-1]} by the command below, the last of those that made these rows; no "
        "number was typed in. `make bench-quality` prints the same tables.",
        "",
        "```text",
        run.command,
        "```",
        "",
    ]


def made_with(run: Run) -> list[str]:
    """The machine and the versions."""
    said = run.machine | run.versions | run.peer_versions()
    return ["## Machine and versions", "", *(f"- {name}: {value}" for name, value in said.items())]


def language(run: Run) -> list[str]:
    """The protocol and the tables of the language model."""
    first = next((row for table in TABLES for row in run.rows(table)), None)
    if first is None:
        return []
    said = [
        "## Language model: wikilm, WikiText-2",
        "",
        f"Llama architecture, {first.weights:,} weights, counted with the embedding, which is the head too. The test "
        f"text is tokenized whole without special tokens and cut into windows of {LENGTH}; the first "
        f"{first.scores.original.size} are scored from their second token, in float32, with the compressed weights "
        f"decoded. Calibration: the first {CALIBRATION} windows of {LENGTH} tokens of the calibration text, for every "
        "row that names no other number, the peers' too. Unless a row says so, the embedding is left in bfloat16 and "
        "only the linear layers of the blocks are compressed; integers are symmetric. Intervals hold with 95 %, the "
        "windows being the samples; the change of perplexity is paired, window by window.",
        "",
        "Bits per weight are 8 times the bytes of the safetensors files over all weights of the model; of the layers: "
        "those of the compressed matrices alone, everything that is stored of them counted. Of peers that computed in "
        "float32, untouched tensors count as the bfloat16 they were. Seconds are those that the processor "
        f"worked on compressing, and those that passed; threads: {run.threads}.",
        "",
    ]
    for table, about in TABLES.items():
        rows = run.rows(table)
        if rows:
            said += [f"### {about[0]}", "", *([about[1], ""] if about[1] else []), *language_table(rows), ""]
        if rows and table == "sizes":
            said += sizes(run, rows)
    return said + parity(run)


def sizes(run: Run, rows: Sequence[Row]) -> list[str]:
    """For each file of llama.cpp the best of ours that is no larger."""
    ours = [row for table in TABLES for row in run.ours(table)]
    itself = {task.name: (row["itself"] or {}).get("kl") for task, row in run.of("sizes") if "itself" in row}
    body = []
    for theirs in (row for row in rows if row.name in itself):
        own = best(ours, theirs.file_bytes)
        if own is not None:
            body.append(
                (
                    theirs.name,
                    f"{theirs.file_bytes:,}",
                    span(theirs.figures.kl, ".5f"),
                    "" if itself[theirs.name] is None else f"{itself[theirs.name]:.5f}",
                    own.name,
                    f"{own.file_bytes:,}",
                    span(own.figures.kl, ".5f"),
                    span(kl_ratio(own, theirs), ".2f"),
                )
            )
    head = ("file", "bytes", "KL", "KL by its own protocol", "the best of ours that fits", "bytes", "KL", "ratio of KL")
    return [*markdown(head, body), ""] if body else []


def parity(run: Run) -> list[str]:
    """What is served is what is evaluated."""
    found = [one for _, row in run.of("parity") for one in row["parities"]]
    if not found:
        return []
    head = ("model", "largest difference of a logit", "largest logit", "same top-1 %", "positions")
    body = [
        (
            p["name"],
            f"{p['largest_difference']:.2g}",
            f"{p['largest_logit']:.1f}",
            f"{100 * p['same_top1']:.1f}",
            f"{p['tokens']}",
        )
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
        "",
    ]


def others(run: Run) -> list[str]:
    """The encoder, the classifiers, and what optimising costs."""
    said: list[str] = []
    found = run.of("encoder")
    if found:
        said += [*encoder.section([encoder.row(task.name, row) for task, row in found]), ""]
    for name in resnet.MODELS:
        if run.rows(name):
            said += [*resnet.section(name, run.rows(name), run.of(f"{name}, pruned")), ""]
    if run.of("cost"):
        said += [*cost.section(run.of("cost")), ""]
    return said
