"""One turn of a measurement: prompts that are read, and tokens that are written after them. Without PyTorch."""

import random
import time

from lissom.engine.engine import Engine
from lissom.engine.sequence import Sampling


def once(running: Engine, sequences: int, prompt: int, new: int) -> tuple[float, float]:
    """Seconds of the step that reads all prompts and gives each its first token, and of `new` steps after it."""
    sampling = Sampling(temperature=0, max_tokens=new + 1, ignore_eos=True)
    for _ in range(sequences):
        running.add([random.randrange(running.vocabulary) for _ in range(prompt)], sampling)
    begun = time.perf_counter()
    running.step()
    middle = time.perf_counter()
    for _ in range(new):
        running.step()
    return middle - begun, time.perf_counter() - middle
