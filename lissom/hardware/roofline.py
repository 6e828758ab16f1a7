"""What a product of a layer takes at least, by a data sheet: its cost where there is no device to measure it on.

    seconds = max( operations / (rate of their type · EFFICIENCY),  bytes / (bytes a second · READING) ) + LAUNCH

Williams, Waterman, Patterson, Roofline, CACM 2009, with the shares of both peaks that programs get (`sheets.py`), and
what it takes to begin at all. A cost is no measurement: it tells forms from each other as far as bytes and operations
do, and nothing of caches, occupancy, or how well a kernel is written.
"""

from lissom.hardware.sheets import EFFICIENCY, READING, Sheet

LAUNCH_S = 5e-6  # to begin a kernel, assumed


def seconds(sheet: Sheet, kind: str, operations: float, nbytes: float) -> float:
    """What so many operations in a type, on so many bytes, cost."""
    return max(operations / (sheet.rate(kind) * EFFICIENCY), nbytes / (sheet.read * READING)) + LAUNCH_S


def assumed() -> str:
    """What a cost assumes, in words."""
    return (
        f"{EFFICIENCY:.0%} of the published rate of products, {READING:.0%} of that of memory, "
        f"{1e6 * LAUNCH_S:g} µs for each call of a layer"
    )
