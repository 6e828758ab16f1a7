"""Runs a command to its end and prints what it took, as JSON; or writes that into a file, and leaves the rest alone.

    python spent.py [--to FILE] COMMAND [WORD ...]

A process of its own, and a small one, because Linux counts the memory of the process that starts a command as the
command's own.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext


def main(command: list[str]) -> int:
    """Seconds by the clock and of the processor, and the largest resident memory in bytes."""
    file = command[1] if command[0] == "--to" else None
    load, start = os.getloadavg()[0], time.perf_counter()
    running = subprocess.Popen(command[2:] if file else command, stdout=None if file else sys.stderr)
    _, status, used = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    clock, seconds = time.perf_counter() - start, used.ru_utime + used.ru_stime
    told = {"clock": clock, "seconds": seconds, "peak_bytes": 1024 * used.ru_maxrss, "load_before": load}
    with open(file, "w", encoding="utf-8") if file else nullcontext(sys.stdout) as out:
        print(json.dumps(told), file=out)
    return running.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
