"""What this machine is: on Linux and macOS, x86 and Arm; what a system does not tell stays unknown."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
MEMORY = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup/memory.max")

# Our name of an instruction set: the names that systems give it (Linux on x86, Linux on Arm, macOS).
ISA = {
    "avx2": {"avx2"},
    "avx512": {"avx512f"},
    "vnni": {"avx512_vnni", "avx_vnni"},
    "avx512_vbmi": {"avx512_vbmi", "avx512vbmi"},
    "bf16": {"avx512_bf16", "bf16", "FEAT_BF16"},
    "fp16": {"avx512_fp16", "asimdhp", "FEAT_FP16"},
    "amx": {"amx_tile"},
    "amx_int8": {"amx_int8"},
    "amx_bf16": {"amx_bf16"},
    "neon": {"asimd", "AdvSIMD"},
    "dotprod": {"asimddp", "FEAT_DotProd"},
    "i8mm": {"i8mm", "FEAT_I8MM"},
    "sve": {"sve"},
    "sme": {"sme", "FEAT_SME"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine; `cores` and `memory_bytes` are those that this process may use, `gpu` is None where there is none."""

    cpu: str
    cores: int
    memory_bytes: int
    isa: tuple[str, ...]
    gpu: str | None
    os: str
    torch: str

    def as_dict(self) -> dict[str, str]:
        """The machine in words, for a report."""
        return {
            "cpu": self.cpu,
            "cores": str(self.cores),
            "memory": f"{self.memory_bytes / 2**30:.1f} GiB",
            "instructions": " ".join(self.isa) or "unknown",
            "gpu": self.gpu or "none",
            "os": self.os,
            "torch": self.torch,
        }


def describe() -> Machine:
    """This machine."""
    # A paragraph for each processor; the first stands for all.
    facts = pairs(CPUINFO.read_text().strip().split("\n\n")[0]) if CPUINFO.exists() else {}
    return Machine(
        cpu=cpu_name(facts),
        cores=cores(),
        memory_bytes=memory_bytes(),
        isa=isa(facts),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        torch=torch.__version__,
    )


def cpu_name(facts: dict[str, str]) -> str:
    """The processor's name; Linux on Arm gives only the architecture's."""
    brand = "machdep.cpu.brand_string"
    return facts.get("model name") or sysctl(brand).get(brand) or platform.processor() or platform.machine()


def isa(facts: dict[str, str]) -> tuple[str, ...]:
    """The instruction sets that matter to us and that the processor has."""
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    flags |= {name.rpartition(".")[2] for name, value in sysctl("hw.optional").items() if value == "1"}
    return tuple(name for name, spellings in ISA.items() if flags & spellings)


def cores() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """The memory that this process may use: the machine's, or less where a container limits it."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return min(installed, int(allowed)) if allowed.isdigit() else installed


def available_bytes() -> int:
    """The memory that is free for this process now, or can be made so; where nobody says it, what it may use."""
    told = pairs(MEMORY.read_text()) if MEMORY.exists() else {}
    free = told.get("MemAvailable", "").split()
    return min(memory_bytes(), 1024 * int(free[0])) if free else memory_bytes()


def sysctl(name: str) -> dict[str, str]:
    """What macOS says under a name; nothing elsewhere."""
    if platform.system() != "Darwin":
        return {}
    said = subprocess.run(["/usr/sbin/sysctl", name], capture_output=True, text=True, check=False).stdout
    return pairs(said)


def pairs(lines: str) -> dict[str, str]:
    """Lines of `name: value`."""
    split = (line.partition(":") for line in lines.splitlines())
    return {name.strip(): value.strip() for name, _, value in split}
