"""`lissom optimize`, killed at random moments and started again, against a run that nobody disturbed.

    python benchmarks/kill.py WORK [--kills 50] [--seed 0] [-- MORE WORDS FOR lissom optimize]

Each trial kills the command (kill -9, its whole process group) after a time drawn evenly from the first third of what
it takes undisturbed, and gives the same command again, so that it comes a little further each time, until it ends by
itself or is killed when its folder, whole, has its name; trials go on until so many kills were given. Every file that
it wrote must be the undisturbed run's byte for byte. What was measured (times, and the page that shows them) differs
from run to run and is left out, and the smallest model is asked for, which no time decides. Ends with 1 if a trial
differs.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lissom
from lissom.artifact import MANIFEST

DEMO = Path(lissom.__file__).parent / "demo"
WORDS = ("--max-drop", "5%", "--length", "128", "--windows", "80", "--prefer", "size")
PAGE, MEASURED = "report.html", "report"  # a file of the folder, and an entry of its manifest
SHARE = 1 / 3  # of the undisturbed run's time: a kill comes within it
Digests = dict[str, str]


def started(out: Path, words: list[str]) -> subprocess.Popen[str]:
    """The command, in a process group of its own; what it says and leaves lies beside the folder."""
    command = [sys.executable, "-m", "lissom.cli", "optimize", str(DEMO), "--data", str(DEMO / "stories.txt")]
    scratch = out.with_name(f"{out.name}-scratch")
    scratch.mkdir(exist_ok=True)
    with out.with_name(f"{out.name}.log").open("a") as log:
        return subprocess.Popen(
            [*command, "--out", str(out), *WORDS, *words],
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(scratch), "XDG_CACHE_HOME": str(scratch)},
        )


def ended(running: subprocess.Popen[str], seconds: float | None = None) -> bool:
    """Whether it ended well, and within so many seconds; if not in time it is killed.

    Raises:
        SystemExit: it failed.
    """
    try:
        code = running.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        return False
    if code:
        raise SystemExit(f"kill: {' '.join(map(str, running.args))} ended with {code}; its log is beside its folder")
    return True


def digests(folder: Path) -> Digests:
    """A digest of every file of a folder, without what was measured."""
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest.pop(MEASURED, None)
    manifest["files"].pop(PAGE, None)
    found.pop(PAGE, None)
    return found | {MANIFEST: hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()}


def trial(out: Path, words: list[str], most: int, whole: float, draw: random.Random) -> tuple[int, float]:
    """Kill the command up to so many times, then let it end: how many kills were given, and the seconds of it all."""
    begun = time.perf_counter()
    for kills in range(most):
        if ended(started(out, words), draw.uniform(0, SHARE * whole)):
            return kills, time.perf_counter() - begun
        if out.exists():  # it takes its name last, and whole: what was killed had nothing left but to end
            return kills + 1, time.perf_counter() - begun
    ended(started(out, words))
    return most, time.perf_counter() - begun


def cleared(work: Path, name: str) -> Path:
    """The name of a folder that is not there."""
    for place in [*work.glob(f"{name}*"), *work.glob(f".{name}*")]:
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    return work / name


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="a folder for what is made")
    parser.add_argument("--kills", type=int, default=50, help="of all trials together")
    parser.add_argument("--most", type=int, default=10, help="kills of one trial, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    return parser.parse_args(sys.argv[1:cut], argparse.Namespace(words=sys.argv[cut + 1 :]))


def main() -> int:
    """An undisturbed run, trials, and what differs."""
    asked, begun = arguments(), time.perf_counter()
    asked.work.mkdir(parents=True, exist_ok=True)
    ended(started(whole := cleared(asked.work, "undisturbed"), asked.words))
    seconds, expected, draw = time.perf_counter() - begun, digests(whole), random.Random(asked.seed)
    kills, trials, differing = 0, 0, list[str]()
    while kills < asked.kills:
        out = cleared(asked.work, "killed")
        given, spent = trial(out, asked.words, min(asked.most, asked.kills - kills), seconds, draw)
        found = digests(out)
        differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        kills, trials, differing = kills + given, trials + 1, [*differing, *differ]
        print(f"trial {trials}: {given} kills, {spent:.0f} s, {', '.join(differ) or 'the same'}", flush=True)
    print(json.dumps({"benchmark": "kill", "kills": kills, "trials": trials, "whole_s": seconds, "differ": differing}))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
