"""Handwriting as text: the letters of a single-line font as directions of the pen, and back as an SVG picture.

    python handwriting.py generate > letters.txt     training text: one letter per line, with random slant and size
    python handwriting.py word "hello" > primes.txt  the beginning of each line for a word, to be completed
    python handwriting.py svg < lines > word.svg     a picture of the lines, one letter after another
    python handwriting.py primes > primes.txt        the beginnings of twenty lines for each letter
    python handwriting.py score < lines              the share of letters that a nearest-neighbour classifier recognises

A line such as `a3 dccbaPPO` has the letter, its slant from 0 (upright) to 4, and the way of the pen in steps of equal
length. The symbols `a` to `p` are 16 directions in steps of 22.5 degrees, counterclockwise from the right, with the pen
on the paper; `A` to `P` are the same directions with the pen lifted. The last steps go to the start of the next letter.
"""

from __future__ import annotations

import itertools
import random
import string
import sys
from collections import Counter, defaultdict
from typing import Any

import numpy as np
from HersheyFonts import HersheyFonts

DIRECTIONS = 16
STEP = 5.0  # length of a step; a capital letter is about 100 high
SLANTS = 5
PER_LETTER = 200  # training lines
LONGEST = 300  # characters of a line of the n-gram models
CELLS, REACH = 20, 8.0  # the classifier compares pictures of CELLS × CELLS points, REACH apart

Points = np.ndarray[Any, Any]
Path = list[tuple[bool, complex]]  # where each step of the pen ends, and whether it writes
TURN = np.exp(2j * np.pi * np.arange(DIRECTIONS) / DIRECTIONS)


def font() -> dict[str, tuple[list[Points], float]]:
    """Return the strokes, as complex points, and the width of each letter of the font."""
    hershey = HersheyFonts()
    hershey.load_default_font("scripts")
    hershey.normalize_rendering(100)
    letters = {}
    for letter in string.ascii_lowercase:
        strokes = [np.array([complex(*point) for point in stroke]) for stroke in hershey.strokes_for_text(letter)]
        letters[letter] = strokes, max(stroke.real.max() for stroke in strokes)
    return letters


def steps_to(pen: complex, target: complex, first: str) -> tuple[str, complex]:
    """Return the symbols that bring the pen near a target, and where it then is."""
    symbols = ""
    while abs(target - pen) > 0.6 * STEP:
        direction = round(np.angle(target - pen) / (2 * np.pi) * DIRECTIONS) % DIRECTIONS
        symbols += chr(ord(first) + direction)
        pen += STEP * TURN[direction]
    return symbols, pen


def write(strokes: list[Points], width: float, slant: int, choose: random.Random) -> str:
    """Return the symbols of one letter with a given slant, and a random size and proportion."""
    size, proportion, lean = choose.uniform(0.8, 1.2), choose.uniform(0.85, 1.15), 0.15 * slant
    symbols, pen = "", 0j
    for stroke in strokes:
        x, y = stroke.real, stroke.imag
        points = size * ((x + lean * y) * proportion + 1j * y)
        moved, pen = steps_to(pen, points[0], "A")
        symbols += moved
        for start, end in itertools.pairwise(points):
            for share in np.linspace(0, 1, max(2, round(abs(end - start) / STEP) + 1))[1:]:
                moved, pen = steps_to(pen, start + share * (end - start), "a")
                symbols += moved
    return symbols + steps_to(pen, complex(size * width * proportion), "A")[0]


def read(symbols: str, pen: complex = 0j) -> Path:
    """Return the way of the pen that the symbols describe. Other characters are ignored."""
    path = [(False, pen)]
    for symbol in symbols:
        direction = ord(symbol.lower()) - ord("a")
        if 0 <= direction < DIRECTIONS:
            pen += STEP * TURN[direction]
            path.append((symbol.islower(), pen))
    return path


def letters(per_letter: int, seed: int) -> list[str]:
    """Return lines of letters in random order."""
    choose, shapes = random.Random(seed), font()
    lines = []
    for letter, (strokes, width) in shapes.items():
        for _ in range(per_letter):
            slant = choose.randrange(SLANTS)
            lines.append(f"{letter}{slant} {write(strokes, width, slant, choose)}")
    choose.shuffle(lines)
    return lines


def svg(lines: list[str]) -> str:
    """Return a picture in which the letters follow one another; an empty line begins a new row."""
    paths, pen, right, row = [], 0j, 0.0, 0
    for line in lines:
        if not line:
            row, pen = row + 1, complex(0, -130 * (row + 1))
        for writes, point in read(line[3:], pen):
            paths.append(f"{'L' if writes else 'M'}{point.real:.1f} {-point.imag:.1f}")
            pen, right = point, max(right, point.real)
        pen = complex(pen.real, -130 * row)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-20 -130 {right + 60:.0f} {130 * row + 190}">'
        f'<path d="{"".join(paths)}" fill="none" stroke="#1a3a8a" stroke-width="4" stroke-linecap="round"'
        ' stroke-linejoin="round"/></svg>'
    )


def picture(line: str) -> Points:
    """Return the written points of a letter as a blurred picture, a unit vector. The slant is kept."""
    points = np.array([point for writes, point in read(line[3:]) if writes] or [0j])
    points = points - points.mean()
    at = (np.arange(CELLS) - CELLS / 2 + 0.5) * REACH
    x = np.exp(-(((points.real[:, None] - at) / REACH) ** 2))
    y = np.exp(-(((points.imag[:, None] - at) / REACH) ** 2))
    image = np.sqrt(y.T @ x).ravel()
    return np.asarray(image / np.linalg.norm(image))


def recognised(lines: list[str], known: list[str]) -> float:
    """Return the share of lines whose picture is nearest to that of a known line with the same letter."""
    pictures = np.array([picture(line) for line in known])
    nearest = [int((pictures @ picture(line)).argmax()) for line in lines]
    return float(np.mean([known[k][0] == line[0] for k, line in zip(nearest, lines, strict=True)]))


def copied(lines: list[str], train: list[str], length: int = 24) -> float:
    """Return the share of lines that have `length` symbols in a row in common with a training line of that letter."""
    known = {(line[0], line[k : k + length]) for line in train for k in range(3, len(line) - length + 1)}
    runs = [{(line[0], line[k : k + length]) for k in range(3, len(line) - length + 1)} for line in lines]
    return float(np.mean([not known.isdisjoint(run) for run in runs]))


def n_gram(train: list[str], primes: list[str], order: int, choose: random.Random) -> list[str]:
    """Complete primes with a model of the next symbol after the letter, the slant and the last `order` symbols."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for line in train:
        for k in range(3, len(line) + 1):
            counts[line[:2], line[max(3, k - order) : k]][(line + "\n")[k]] += 1
    lines = []
    for prime in primes:
        line = prime
        while not line.endswith("\n") and len(line) < LONGEST:
            found = counts[line[:2], line[max(3, len(line) - order) :]]
            line += choose.choices(list(found), list(found.values()))[0]
        lines.append(line.rstrip("\n"))
    return lines


def score(lines: list[str]) -> None:
    """Print the recognised and the copied share of the lines, of new lines from the font, and of n-gram models."""
    train, known, choose = letters(PER_LETTER, 1), letters(40, 2), random.Random(3)
    rows = {"the font": letters(10, 4), "model": lines}
    for order in (4, 6, 8, 16):
        rows[f"last {order} symbols"] = n_gram(train, [line[:3] for line in lines], order, choose)
    for name, found in rows.items():
        print(f"{name:16} {recognised(found, known):6.1%} recognised, {copied(found, train):6.1%} copied")


def main(task: str, *arguments: str) -> None:
    """Do one of the tasks of the module's description."""
    if task == "generate":
        print("\n".join(letters(PER_LETTER, 1)))
    elif task == "word":
        print("\n".join(f"{letter}2 " for letter in arguments[0]))
    elif task == "primes":
        print("\n".join(f"{letter}{k % SLANTS} " for letter in string.ascii_lowercase for k in range(20)))
    elif task == "svg":
        print(svg(sys.stdin.read().splitlines()))
    else:
        score(sys.stdin.read().splitlines())


if __name__ == "__main__":
    main(*sys.argv[1:])
