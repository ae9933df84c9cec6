"""Write dates in words with their ISO form, and compare translations with the nearest phrase of the training text.

    python dates.py generate              write train.txt, questions.txt and answers.txt
    python dates.py score < translated    compare the translated lines with answers.txt

No date of questions.txt is in train.txt, in any wording.
"""

from __future__ import annotations

import calendar
import datetime
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

TRAINING, QUESTIONS = 20_000, 1_000
ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
ONES += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
ORDINALS |= {"twelve": "twelfth", "twenty": "twentieth", "thirty": "thirtieth"}


def number(value: int) -> str:
    """Return a number from 1 to 99 in words, such as "ninety-four"."""
    if value < 20:
        return ONES[value - 1]
    tens, ones = TENS[value // 10 - 2], value % 10
    return f"{tens}-{ONES[ones - 1]}" if ones else tens


def ordinal(value: int) -> str:
    """Return an ordinal number from 1 to 99 in words, such as "twenty-third"."""
    *tens, last = number(value).split("-")
    return "-".join([*tens, ORDINALS.get(last, last + "th")])


def year_in_words(year: int, choose: random.Random) -> str:
    """Return a year from 1900 to 2099 in one of its usual wordings."""
    century, rest = divmod(year, 100)
    if rest == 0:
        return "nineteen hundred" if century == 19 else "two thousand"
    pair = f"{number(century)} {number(rest) if rest > 9 else 'oh ' + number(rest)}"
    long = f"two thousand and {number(rest)}" if century == 20 else f"nineteen hundred and {number(rest)}"
    return choose.choice([pair, pair, long])


def phrase(day: datetime.date, choose: random.Random) -> str:
    """Return a date in words, in one of four wordings."""
    of_month, month = ordinal(day.day), calendar.month_name[day.month].lower()
    year = year_in_words(day.year, choose)
    wordings = [f"the {of_month} of {month} {year}", f"{month} the {of_month}, {year}"]
    return choose.choice([*wordings, f"{of_month} {month} {year}", f"{month} {of_month}, {year}"])


def generate() -> None:
    """Write the training text, the held-out phrases and their dates."""
    choose = random.Random(1)
    first, last = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
    days = [datetime.date.fromordinal(day) for day in range(first, last + 1)]
    choose.shuffle(days)
    lines = [(phrase(day, choose), day.isoformat()) for day in days[: TRAINING + QUESTIONS]]
    held_out, train = lines[:QUESTIONS], lines[QUESTIONS:]
    Path("train.txt").write_text("".join(f"{words} = {date}\n" for words, date in train))
    Path("questions.txt").write_text("".join(f"{words} = \n" for words, _ in held_out))
    Path("answers.txt").write_text("".join(f"{date}\n" for _, date in held_out))


def nearest(train: list[str], questions: list[str]) -> list[str]:
    """Return for each question the date of the training phrase that has the largest share of words in common."""
    pairs = [line.split(" = ") for line in train]
    words = {word: k for k, word in enumerate(sorted({word for known, _ in pairs for word in parts(known)}))}

    def rows(phrases: list[str]) -> np.ndarray[Any, Any]:
        """Return unit vectors that mark the words of each phrase."""
        marks = np.zeros((len(phrases), len(words)), np.float32)
        for row, text in zip(marks, phrases, strict=True):
            row[[words[word] for word in parts(text) if word in words]] = 1
        return np.asarray(marks / np.linalg.norm(marks, axis=1, keepdims=True))

    best = (rows(questions) @ rows([known for known, _ in pairs]).T).argmax(axis=1)
    return [pairs[k][1] for k in best]


def parts(text: str) -> list[str]:
    """Return the words of a phrase; "twenty-third" has two."""
    return text.removesuffix(" = ").replace(",", "").replace("-", " ").split()


def score(translated: list[str]) -> None:
    """Print the share of exact matches, and of correct years, months and days, beside those of the nearest phrase."""
    answers = [date.split("-") for date in Path("answers.txt").read_text().splitlines()]
    questions, train = (Path(name).read_text().splitlines() for name in ("questions.txt", "train.txt"))
    for name, dates in (("model", translated), ("nearest phrase", nearest(train, questions))):
        fields = np.array([(*date.split("-"), "", "")[:3] for date in dates]) == np.array(answers)
        year, month, day = fields.mean(axis=0)
        print(f"{name:15} {fields.all(axis=1).mean():6.1%} exact; year {year:.1%}, month {month:.1%}, day {day:.1%}")


if __name__ == "__main__":
    if sys.argv[1:] == ["generate"]:
        generate()
    else:
        score(sys.stdin.read().splitlines())
