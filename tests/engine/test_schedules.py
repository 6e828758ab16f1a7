"""Random schedules, a few hundred of those that benchmarks/schedules.py runs: by itself, without checks of types."""

import json
import subprocess
import sys
from pathlib import Path


def test_every_text_is_the_one_written_alone_and_every_page_comes_back(root: Path) -> None:
    script = [sys.executable, root / "benchmarks" / "schedules.py", "--count", "200", "--seed", "1"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    happened = json.loads(done.stdout.splitlines()[-1])
    assert happened["schedules"] == 200
    assert min(happened[name] for name in ("cancelled", "preemptions", "reused tokens", "accepted tokens")) > 30
