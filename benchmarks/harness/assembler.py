"""What ptxas says of a kernel: registers and stack, and whether it waits between products where the kernel does not."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

FENCE = r"warpgroup\.arrive is injected"  # orders registers before a product, and waits for none
# Every sentence of ptxas 12 and 13 on wgmma, warp groups and "GMMA". All but the fence mean products that do not overlap.
SENTENCES = (
    r"wgmma\.mma_async instructions are serialized due to ",
    FENCE,
    r"warpgroup\.wait is injected in around line ",
    r"wgmma\.wait_group is injected in around line ",
    r"GMMA sequence has too many active live ranges ",
)
_ABOUT_PRODUCTS = re.compile(r"\((C\d+)\)\s*(.*(?:wgmma|warpgroup|GMMA).*)")


def ptxas_log(ptx: str, arch: int) -> str:
    """What the assembler that Triton itself uses for this architecture says of the code."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    if target is None:
        raise ValueError("expected a .target line in the PTX, got none")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={target[1]}", file.name, "-o", os.devnull]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def waits_added(log: str) -> list[str]:
    """What a log says of wgmma, known sentence or not, each once, such as 'C7517: warpgroup.wait is injected by …'."""
    found = (_ABOUT_PRODUCTS.search(line) for line in log.splitlines())
    sentences = (f"{match[1]}: {match[2].removeprefix('Potential Performance Loss: ')}" for match in found if match)
    without_lines = (re.sub(r" in (?:around )?line \d+", "", sentence) for sentence in sentences)
    return list(dict.fromkeys(re.sub(r" in (?:the )?function '.*'", "", sentence) for sentence in without_lines))


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack per thread, as cuobjdump reads them from the machine code."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump), "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no registers: {text!r}")
    return int(found[1]), int(found[2])
