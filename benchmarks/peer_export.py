"""An export whose packages are not where the benchmark runs, in an interpreter that has them.

    python peer_export.py FOLDER PATHS DESCRIPTOR

PATHS are folders of packages, of which what this interpreter has not is taken: lissom's own, and what that needs. Asked
[model, artifact, work, shared, export, out] it writes an artifact of `benchmarks/targets.py` for a runtime, and answers
what there is to say of it.
"""

import os
import sys
from pathlib import Path
from typing import Any

from turns import answer_all, failure


def answer(name: str, title: str, work: str, shared: str, to: str, out: str) -> dict[str, Any]:
    """What is said of an export, or why there is none."""
    from artifacts import cases, exported

    try:
        case = next(one for one in cases(name, Path(work), Path(shared)) if one.title == title)
        return exported(case, to, Path(out))
    except Exception as error:  # of an export of any kind
        return {"failed": failure(error)}


if __name__ == "__main__":
    sys.path.extend(sys.argv[2].split(os.pathsep))
    answer_all(sys.argv[3], {}, answer)
