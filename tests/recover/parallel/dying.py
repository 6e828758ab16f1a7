"""What each worker runs: it learns, and the second one kills itself once, at a look.

torchrun ... dying.py ORIGINAL SMALL TEXT OUT LOOK
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from lissom.calibrate.texts import read_windows
from lissom.models import Checkpoint
from lissom.recover import loop
from lissom.recover.folder import recover_folder
from lissom.recover.training import Training


def main(original: str, small: str, text: str, out: str, when: str) -> None:
    """Learn, and die before that look unless it was done before."""
    look, looks = loop.Story.look, 0

    def deadly(story: loop.Story, enough: Any) -> None:
        nonlocal looks
        looks += 1
        first_time = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if os.environ["RANK"] == "1" and looks == int(when) and first_time:
            print(f"died at look {looks}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        look(story, enough)

    loop.Story.look = deadly  # type: ignore[method-assign]
    windows = read_windows([Path(text)], Checkpoint(original).tokenizer(), 16)
    recover_folder(small, windows, out, Training(steps=12, looks=6, batch=8), original=original)


if __name__ == "__main__":
    main(*sys.argv[1:])
