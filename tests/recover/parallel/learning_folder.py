"""What each worker runs: it learns from a folder, and at a look kills itself once, or all stop.

torchrun ... learning_folder.py ORIGINAL SMALL TEXT OUT [--layout LAYOUT] [--top-k K] [--die LOOK] [--stop LOOK]
"""

import argparse
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from lissom.calibrate.texts import read_windows
from lissom.models import Checkpoint
from lissom.recover import loop
from lissom.recover.folder import Learned, recover_folder
from lissom.recover.parallel.layout import read_layout
from lissom.recover.training import Training

TRAINING = Training(steps=50, looks=10, batch=8, bf16=False)


def learned(
    original: str | Path, small: str | Path, text: str | Path, out: str | Path, layout: str = "", top_k: int = 0
) -> Learned:
    """Learn as is asked; of what is remembered for fewer steps."""
    windows = read_windows([Path(text)], Checkpoint(original).tokenizer(), 16)
    training = replace(TRAINING, steps=20, looks=4, top_k=top_k) if top_k else TRAINING
    return recover_folder(small, windows, out, training, original=original, layout=read_layout(layout))


def main() -> None:
    """Learn, but for what may happen at a look."""
    parser = argparse.ArgumentParser()
    for name in ("original", "small", "text", "out"):
        parser.add_argument(name)
    parser.add_argument("--layout", default="")
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--die", type=int)
    parser.add_argument("--stop", type=int)
    asked = parser.parse_args()
    look, looks = loop.Story.look, 0
    first_time = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

    def fateful(story: loop.Story, enough: Any) -> None:
        nonlocal looks
        looks += 1
        if looks == asked.stop:
            raise SystemExit(0)
        if os.environ["RANK"] == "1" and looks == asked.die and first_time:
            print(f"died at look {looks}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        look(story, enough)

    loop.Story.look = fateful  # type: ignore[method-assign]
    learned(asked.original, asked.small, asked.text, asked.out, asked.layout, asked.top_k)


if __name__ == "__main__":
    main()
