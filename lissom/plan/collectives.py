"""What devices tell each other all at once: how many bytes each of them sends, and how long that takes.

By a ring of n devices (Patarasuk, Yuan, JPDC 2009), of d bytes that each of them has or is to have:

    sum        2 (n-1)/n d bytes,  2 (n-1) messages one after the other
    gather       (n-1)/n d bytes,    (n-1) messages      and so does scattering a sum

A sum of few bytes among many devices goes through two trees instead (Sanders, Speck, Träff, Parallel Computing 2009),
2 d bytes in 2 log₂ n messages; libraries take whichever is sooner, and so does this.
"""

from math import ceil, log2

from lissom.plan.device import Link


def summed_bytes(d: float, n: int) -> float:
    """What each device sends for a sum of d bytes over n, by a ring."""
    return 2 * (n - 1) / n * d


def gathered_bytes(d: float, n: int) -> float:
    """What each device sends so that all have d bytes of which each had its part; scattering a sum is the reverse."""
    return (n - 1) / n * d


def sum_s(d: float, n: int, link: Link) -> float:
    """Seconds for the sum of d bytes over n devices, on all of them."""
    if n == 1:
        return 0.0
    ring = 2 * (n - 1) * link.latency_s + summed_bytes(d, n) / link.bytes_per_s
    trees = 2 * ceil(log2(n)) * link.latency_s + 2 * d / link.bytes_per_s
    return min(ring, trees)


def gather_s(d: float, n: int, link: Link) -> float:
    """Seconds to gather d bytes of n devices on all of them, or to scatter their sum."""
    return (n - 1) * link.latency_s + gathered_bytes(d, n) / link.bytes_per_s if n > 1 else 0.0


def send_s(d: float, link: Link) -> float:
    """Seconds to send d bytes to one other device."""
    return link.latency_s + d / link.bytes_per_s
