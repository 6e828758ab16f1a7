"""Runs a command to its end and prints what it took, as JSON.

    python spent.py COMMAND [WORD ...]

A process of its own, and a small one, because Linux counts the memory of the process that starts a command as the
command's own.
"""

import json
import os
import subprocess
import sys
import time


def main(command: list[str]) -> int:
    """Seconds by the clock and of the processor, and the largest resident memory in bytes."""
    load, start = os.getloadavg()[0], time.perf_counter()
    running = subprocess.Popen(command, stdout=sys.stderr)
    _, status, used = os.wait4(running.pid, 0)
    running.returncode = os.waitstatus_to_exitcode(status)
    clock, seconds = time.perf_counter() - start, used.ru_utime + used.ru_stime
    print(json.dumps({"clock": clock, "seconds": seconds, "peak_bytes": 1024 * used.ru_maxrss, "load_before": load}))
    return running.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
