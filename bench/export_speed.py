"""Size and speed of an exported model on a microcontroller, in emulators, and on this machine.

    python bench/export_speed.py runs/small

Characters per second of the ATmega328P are cycles in simavr at 16 MHz; of the Cortex-M4F, instructions in qemu at
168 MHz, one instruction per cycle (memory without wait states). Needs avr-gcc, libsimavr, arm-none-eabi-gcc,
qemu-system-arm and cc.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import charlstm
from charlstm.export.c import export_c
from charlstm.export.integer_model import IntegerModel

ROOT = Path(__file__).parents[1]
CHARACTERS = 500


def run(*command: object) -> str:
    """Run a command to its end and return what it writes to stdout and stderr."""
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    return done.stdout.decode("utf-8", "replace")


def sizes(tool: str, program: Path) -> tuple[int, int]:
    """Return flash and RAM in bytes of a program, without its stack, from the columns text, data and bss."""
    text, data, bss = map(int, run(tool, program).splitlines()[-1].split()[:3])
    return text + data, data + bss


def avr(folder: Path) -> str:
    """Return size and speed on an ATmega328P."""
    shutil.copy(ROOT / "examples" / "avr" / "main.c", folder)
    options = ("-mmcu=atmega328p", "-std=gnu99", "-Os", f"-DCHARACTERS={CHARACTERS}")
    run("avr-gcc", *options, folder / "main.c", "-o", folder / "poet.elf")
    source = ROOT / "tests" / "export" / "simulate_avr.c"
    run("cc", "-O2", source, "-o", folder / "simulate", "-lsimavr", "-lelf")
    cycles, stack = map(int, run(folder / "simulate", folder / "poet.elf", folder / "text").split()[-2:])
    flash, ram = sizes("avr-size", folder / "poet.elf")
    speed = 16e6 * CHARACTERS / cycles
    return f"{flash:,} bytes of flash, {ram:,} + {stack} of stack bytes of RAM, {speed:.1f} characters/s"


def cortex_m4(folder: Path) -> str:
    """Return size and speed on a Cortex-M4F."""
    shutil.copy(ROOT / "examples" / "cortex-m" / "main.c", folder)
    command = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-O2", "-std=gnu99", "-ffreestanding", "-nostdlib"]
    command += ["-T", str(ROOT / "examples" / "cortex-m" / "mps2.ld"), "-Wl,--defsym=CODE=0,--defsym=DATA=0x20000000"]
    run(*command, f"-DCHARACTERS={CHARACTERS}", folder / "main.c", "-o", folder / "poet.elf", "-lgcc")
    emulator = ["qemu-system-arm", "-M", "mps2-an386", "-cpu", "cortex-m4", "-nographic", "-monitor", "none"]
    emulator += ["-serial", "none", "-semihosting-config", "enable=on,target=native", "-icount", "shift=0"]
    instructions = int(re.findall(r"\d+", run(*emulator, "-kernel", folder / "poet.elf").split("\0")[-1])[0])
    flash, _ = sizes("arm-none-eabi-size", folder / "poet.elf")
    return f"{flash:,} bytes of flash, {instructions:,} instructions and {168e6 / instructions:,.0f} characters/s"


def characters_per_second(command: Sequence[object], option: int) -> float:
    """Return the speed of a program that takes the number of characters as its argument `option`.

    The difference between a long and a short text does not contain the start of the program.
    """
    seconds = []
    for length in (1, 80 * CHARACTERS) * 3:
        words = [*command[:option], length, *command[option:]]
        began = time.perf_counter()
        run(*words)
        seconds.append(time.perf_counter() - began)
    return 80 * CHARACTERS / (min(seconds[1::2]) - min(seconds[0::2]))


def host(folder: Path, checkpoint: str) -> str:
    """Return the speed on one core of this machine, beside that of `charlstm sample`."""
    run("cc", "-O3", "-march=native", "-DCHARLSTM_MAIN", folder / "model.c", "-o", folder / "poet")
    program = characters_per_second([folder / "poet", "0.8", "1"], 1)
    sample = [sys.executable, "-m", "charlstm", "sample", "-c", checkpoint, "--seed", 1, "--threads", 1, "-n"]
    found = [f"{program:,.0f} characters/s"]
    for precision in ("fp32", "int8"):
        speed = characters_per_second([*sample, "--precision", precision], len(sample))
        found.append(f"charlstm sample --precision {precision} {speed:,.0f}")
    return ", ".join(found)


def main() -> None:
    """Print a row for each target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    checkpoint = parser.parse_args().checkpoint
    model = charlstm.load(checkpoint)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        need = export_c(model, IntegerModel(model.config, model.weights), folder / "model.c")
        print(f"{model.config.cell} {model.config.layers} × {model.config.hidden}, {model.config.vocab_size} symbols")
        print(f"constants {need.flash_bytes:,} bytes, state {need.ram_bytes:,}, {need.multiply_adds:,} multiply-adds")
        for target in (avr, cortex_m4):
            try:
                print(f"{target.__name__}: {target(folder)}", flush=True)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                print(f"{target.__name__}: not measured ({error})", flush=True)
        print(f"host: {host(folder, checkpoint)}")


if __name__ == "__main__":
    main()
