"""Data sheets: what devices do at most, by what their makers publish, without sparsity.

    h100      NVIDIA H100 SXM: data sheet (989.4 TFLOPS in 16 bits, 1,979 in 8, 67 in fp32; 80 GB, 3.35 TB/s)
    h200      NVIDIA H200 SXM: data sheet (as h100; 141 GB, 4.8 TB/s)
    b200      NVIDIA B200: DGX B200 data sheet, an eighth of each (36 PFLOPS sparse FP16 / 2 / 8, 1,440 GB, 64 TB/s);
              Blackwell data sheet, HGX B200 (9 POPS sparse INT8 and FP8 / 2, 75 TFLOPS fp32)
    a100      NVIDIA A100 80 GB SXM: data sheet (312 TFLOPS, 624 TOPS INT8, 19.5 in fp32; 2,039 GB/s)
    mi300x    AMD Instinct MI300X: data sheet (1,307.4 TFLOPS, 2,614.9 in 8 bits, 163.4 in fp32; 192 GB, 5.3 TB/s)
    tpu-v5e   docs.cloud.google.com/tpu/docs/v5e (197 TFLOPS, 393 TOPS INT8, 16 GB, 819 GB/s)
    tpu-v5p   docs.cloud.google.com/tpu/docs/v5p (459 TFLOPS, 918 TOPS INT8, 95 GB, 2,765 GB/s)
    tpu-v6e   docs.cloud.google.com/tpu/docs/v6e (918 TFLOPS, 1,836 TOPS INT8, 32 GB, 1,638 GB/s)

A program gets a share of these. Which, is an assumption, stated wherever something is computed from it: of products
40 % (Narayanan et al. 2021, arXiv:2104.04473, table 1, have 43 % to 52 % in training), of passes over memory 70 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass

G, T = 10**9, 10**12
EFFICIENCY, READING = 0.4, 0.7  # the shares of both peaks that are assumed
WIDER = {"fp8": "bf16", "int8": "bf16", "fp32": "bf16"}  # the type in which is multiplied what has no rate of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A device as it is published: operations a second by the type of what is multiplied, bytes, and bytes a second."""

    name: str
    rates: Mapping[str, float]
    memory: float
    read: float

    def rate(self, kind: str) -> float:
        """Multiplications and additions a second in a type; a TPU multiplies fp32 in bf16, as XLA does by default."""
        return self.rates[kind if kind in self.rates else WIDER[kind]]


def published(name: str, gbytes: float, read_gbytes: float, **tera: float) -> Sheet:
    """A sheet in the units of data sheets."""
    rates = {kind: rate * T for kind, rate in tera.items()}
    return Sheet(name=name, rates=rates, memory=gbytes * G, read=read_gbytes * G)


SHEETS: Mapping[str, Sheet] = {
    sheet.name: sheet
    for sheet in (
        published("h100", 80, 3350, fp32=67, bf16=989.4, int8=1979, fp8=1979),
        published("h200", 141, 4800, fp32=67, bf16=989.4, int8=1979, fp8=1979),
        published("b200", 180, 8000, fp32=75, bf16=2250, int8=4500, fp8=4500),
        published("a100", 80, 2039, fp32=19.5, bf16=312, int8=624),
        published("mi300x", 192, 5300, fp32=163.4, bf16=1307.4, int8=2614.9, fp8=2614.9),
        published("tpu-v5e", 16, 819, bf16=197, int8=393),
        published("tpu-v5p", 95, 2765, bf16=459, int8=918),
        published("tpu-v6e", 32, 1638, bf16=918, int8=1836),
    )
}
