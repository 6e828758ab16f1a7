"""Arguments that several verbs have."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="folder of a model (Hugging Face or lissom), or a hub name")]
Data = Annotated[
    Path,
    typer.Option(
        help="a text (UTF-8) for language models; for text encoders (--task sts) pairs of sentences with scores, .csv, "
        ".tsv or .jsonl; else .npz with arrays x and y, or labels and arrays named as the model's inputs"
    ),
]
Lot = Annotated[Path | None, typer.Option(help="as for optimize; of --task its file, of lm-eval's it may be left out")]
Out = Annotated[Path, typer.Option(help="the folder to make; it must not exist")]
Length = Annotated[int, typer.Option(help="tokens of a window", min=2)]
Json = Annotated[bool, typer.Option("--json", help="figures as one JSON object")]
Events = Annotated[bool, typer.Option("--json", help="events as JSON, a line each; the last is the result")]
Examples = Annotated[int, typer.Option(help="examples (windows of a text) to use, at most, drawn at random", min=1)]
Planned = Annotated[
    int | None,
    typer.Option(
        help="examples that there will be, settled before any was scored; less of a budget is then lost to chance",
        min=1,
    ),
]
Drops = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        "--max-drop",
        help="accepted drop, such as 1% (the default), or of a metric, such as kl=0.05; all of several must hold",
    ),
]
Relative = Annotated[bool, typer.Option(help="drops are shares of the original's own score")]
Confidence = Annotated[str, typer.Option(help="how sure the certificate is")]
Tokenizer = Annotated[
    str | None, typer.Option(help="folder of the tokenizer, for --task sts with a model that has none")
]
Clusters = Annotated[
    Path | None,
    typer.Option(help="an .npy file with an integer for each example that is scored: those of one belong together"),
]
Task = Annotated[
    str | None,
    typer.Option(help="what DATA holds: blimp, choices, exact, hellaswag, lambada, sts, lm-eval:TASK"),
]
