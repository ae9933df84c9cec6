"""One seed gives one text on every target: x86-64, aarch64, RISC-V, Cortex-M4F, Cortex-M33 and AVR, in emulators."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from charlstm.config import ModelConfig
from charlstm.export.c import c_source, footprint
from charlstm.export.integer_model import IntegerModel
from charlstm.text.vocabulary import Vocabulary
from tests.helpers.models import random_weights
from tests.helpers.tools import EXAMPLES, needs, output

CHARACTERS = 2000
TOOLS = {
    "aarch64": ("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    "riscv64": ("riscv64-linux-gnu-gcc", "qemu-riscv64"),
    "cortex-m4": ("arm-none-eabi-gcc", "qemu-system-arm"),
    "cortex-m33": ("arm-none-eabi-gcc", "qemu-system-arm"),
    "avr": ("avr-gcc", "gcc"),
}


def on_linux(target: str) -> Callable[[Path], bytes]:
    def run(folder: Path) -> bytes:
        compiler, emulator = TOOLS[target]
        options = ("-static", "-std=c99", "-O2", "-DCHARLSTM_MAIN")
        output(compiler, *options, folder / "model.c", "-o", folder / "poet")
        return output(emulator, folder / "poet", CHARACTERS, "0.8", "1")

    return run


def simulate_cortex(
    folder: Path, cpu: str, board: str, code: int, data: int, characters: int = CHARACTERS, *options: str
) -> bytes:
    """Run the example for the Cortex-M; return its text, a zero and the number of instructions for a character."""
    shutil.copy(EXAMPLES / "cortex-m" / "main.c", folder)
    command = ["arm-none-eabi-gcc", f"-mcpu={cpu}", "-mthumb", "-O2", "-std=gnu99", "-ffreestanding", "-nostdlib"]
    command += ["-T", str(EXAMPLES / "cortex-m" / "mps2.ld"), f"-Wl,--defsym=CODE={code},--defsym=DATA={data}"]
    output(*command, f"-DCHARACTERS={characters}", folder / "main.c", "-o", folder / "poet.elf", "-lgcc")
    emulator = ["qemu-system-arm", "-M", board, "-cpu", cpu, "-nographic", "-monitor", "none", "-serial", "none"]
    emulator += ["-semihosting-config", "enable=on,target=native", *options]
    return output(*emulator, "-kernel", folder / "poet.elf")


def on_cortex(cpu: str, board: str, code: int, data: int) -> Callable[[Path], bytes]:
    def run(folder: Path) -> bytes:
        return simulate_cortex(folder, cpu, board, code, data).split(b"\0")[0]

    return run


def simulate_avr(folder: Path, characters: int = CHARACTERS) -> tuple[int, int]:
    """Run the example for the ATmega328P; return the cycles that it took, and the bytes of its stack."""
    shutil.copy(EXAMPLES / "avr" / "main.c", folder)
    options = ("-mmcu=atmega328p", "-std=gnu99", "-Os", f"-DCHARACTERS={characters}")
    output("avr-gcc", *options, folder / "main.c", "-o", folder / "poet.elf")
    source = Path(__file__).with_name("simulate_avr.c")
    output("gcc", "-O2", source, "-o", folder / "simulate", "-lsimavr", "-lelf")
    cycles, stack = output(folder / "simulate", folder / "poet.elf", folder / "text").split()[-2:]
    return int(cycles), int(stack)


def on_avr(folder: Path) -> bytes:
    simulate_avr(folder)
    return (folder / "text").read_bytes()


RUNS: dict[str, Callable[[Path], bytes]] = {
    "aarch64": on_linux("aarch64"),
    "riscv64": on_linux("riscv64"),
    "cortex-m4": on_cortex("cortex-m4", "mps2-an386", 0x00000000, 0x20000000),
    "cortex-m33": on_cortex("cortex-m33", "mps2-an505", 0x10000000, 0x38000000),
    "avr": on_avr,
}


def source(cell: str = "lstm") -> str:
    """A model that fits into an ATmega328P; its weights are large enough that rounding errors would change the text."""
    vocabulary = Vocabulary.of("\n abcdefghijklmnopqrstuvwxyz")
    config = ModelConfig(len(vocabulary), 62, 1, 11, cell)  # type: ignore[arg-type]
    return c_source(config, vocabulary, IntegerModel(config, random_weights(config, scale=4)))


def on_host(folder: Path) -> bytes:
    output("gcc", "-std=c99", "-O2", "-DCHARLSTM_MAIN", folder / "model.c", "-o", folder / "host")
    return output(folder / "host", CHARACTERS, "0.8", "1")


@pytest.mark.parametrize("target", RUNS)
def test_the_text_of_a_seed_is_the_same_on_every_target(target: str, tmp_path: Path) -> None:
    needs("gcc", *TOOLS[target])
    (tmp_path / "model.c").write_text(source())
    expected = on_host(tmp_path)
    assert len(expected) == CHARACTERS
    assert len(set(expected)) > 10
    assert RUNS[target](tmp_path) == expected


@pytest.mark.parametrize("change", [("+ 32896u) >> 8", "+ 32897u) >> 8"), ("+ 64u) >> 7", "+ 65u) >> 7")])
def test_a_changed_rounding_changes_the_text(change: tuple[str, str], tmp_path: Path) -> None:
    """Negative control: the texts above differ as soon as one rounding does."""
    needs("gcc")
    (tmp_path / "model.c").write_text(source())
    expected = on_host(tmp_path)
    assert change[0] in source()
    (tmp_path / "model.c").write_text(source().replace(*change))
    assert on_host(tmp_path) != expected


@pytest.mark.parametrize("cell", ["peephole", "coupled", "gru", "rnn"])
def test_every_cell_is_the_same_on_processors_with_their_own_code(cell: str, tmp_path: Path) -> None:
    for target in ("cortex-m4", "avr"):
        needs("gcc", *TOOLS[target])
        (tmp_path / "model.c").write_text(source(cell))
        assert RUNS[target](tmp_path) == on_host(tmp_path)


def test_a_model_of_70_symbols_fits_into_an_atmega328p(tmp_path: Path) -> None:
    """Flash at most 31 KiB, RAM with the stack at most 1.5 KiB, and at least 40 characters a second at 16 MHz."""
    needs("gcc", *TOOLS["avr"], "avr-size")
    vocabulary = Vocabulary.of("\n" + "".join(map(chr, range(32, 101))))
    config = ModelConfig(len(vocabulary), 64, 1, 12)
    (tmp_path / "model.c").write_text(c_source(config, vocabulary, IntegerModel(config, random_weights(config))))
    cycles, stack = simulate_avr(tmp_path, 40)
    text, data, bss = map(int, output("avr-size", tmp_path / "poet.elf").split()[6:9])
    assert len(vocabulary) == 70
    assert text + data <= 31 * 1024
    assert data + bss + stack <= 1536
    assert 40 * 16e6 / cycles >= 40


def test_a_model_of_128_units_generates_1000_characters_a_second_on_a_cortex_m4(tmp_path: Path) -> None:
    """Instructions at 168 MHz, one instruction a cycle; RAM at most 8 KiB without the example's buffer for the text."""
    needs("gcc", *TOOLS["cortex-m4"], "arm-none-eabi-size")
    vocabulary = Vocabulary.of("\n" + "".join(map(chr, range(32, 96))))
    config = ModelConfig(len(vocabulary), 128)
    model = IntegerModel(config, random_weights(config))
    (tmp_path / "model.c").write_text(c_source(config, vocabulary, model))
    found = simulate_cortex(tmp_path, "cortex-m4", "mps2-an386", 0, 0x20000000, 50, "-icount", "shift=0")
    text, instructions = found.split(b"\0")
    assert len(text) == 50
    assert 20_000 < int(instructions) <= 168_000
    data, bss = map(int, output("arm-none-eabi-size", tmp_path / "poet.elf").split()[7:9])
    stack = 2048
    assert footprint(config, vocabulary, model).ram_bytes + stack <= data + bss <= 8192
