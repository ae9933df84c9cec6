"""Find unusual lines of a log as they arrive, with a state that is kept between calls.

    python anomalies.py generate         write normal.log, today.log, and the unusual lines of today.log in unusual.txt
    python anomalies.py watch RUN STATE  read new lines from stdin and print the unusual ones after their score
    python anomalies.py score < found    precision and recall of the printed lines, and of a plain rule

`watch` is called for each batch of new lines. It carries the state of the model from line to line and from call to
call, so a line is also unusual if it does not fit the lines before it. The score of a line is the largest surprisal of
its characters. A line is unusual if its score is above a threshold, which follows from the scores of earlier lines.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

import charlstm

EARLIER = 2000  # scores that the threshold is computed from
ENOUGH = 200  # lines at the beginning of the first call that are not judged
QUANTILE, MARGIN = 0.9, 3.0  # threshold = median + MARGIN × (QUANTILE − median)


def watch(run: str, state: Path, lines: Iterable[str]) -> Iterator[tuple[float, str]]:
    """Yield the score in bits and the text of each unusual line, then save the state."""
    model = charlstm.load(run)
    place, scores = state.with_suffix(".context"), state.with_suffix(".json")
    context = model.load_state(place) if place.exists() else model.advance("\n")
    earlier = json.loads(scores.read_text()) if scores.exists() else []
    for line in lines:
        ids = np.asarray(model.encode(line.partition(" ")[2], "replace")[0])  # without its time
        nats, after = model.scorer.score(np.append(context.last, ids)[:, None], context.state)
        bits = float(nats.max()) / math.log(2)
        if len(earlier) >= ENOUGH and bits > threshold(earlier):
            yield bits, line
        else:  # an unusual line does not change the state, so that the next line is not unusual, too
            context = context.moved(after, ids)
        earlier = [*earlier[1 - EARLIER :], bits]
    model.save_state(place, context)
    scores.write_text(json.dumps(earlier))


def threshold(earlier: list[float]) -> float:
    """Return the score in bits above which a line is unusual."""
    median, high = np.quantile(earlier, [0.5, QUANTILE])
    return float(median + MARGIN * (high - median))


def events(choose: random.Random) -> Iterator[str]:
    """Yield the events of a server without end: sessions, backups and requests, one after another."""
    networks = {"alice": "10.1.0", "bob": "10.2.0", "carol": "192.168.7", "dave": "172.16.3"}
    files = ["report.txt", "budget.csv", "notes.md", "plan.txt"]
    paths = ["/", "/about", "/search?q=lstm", "/style.css", "/logo.png", "/api/items"]
    while True:
        kind = choose.random()
        if kind < 0.4:
            user = choose.choice(list(networks))
            yield f"login {user} from {networks[user]}.{choose.randrange(10, 100)}"
            for file in choose.sample(files, choose.randrange(1, 4)):
                yield f"open {file}"
                if choose.random() < 0.6:
                    yield f"save {file}"
            yield f"logout {user}"
        elif kind < 0.6:
            yield "backup start"
            yield f"backup copy {choose.randrange(100, 1000)} files"
            yield "backup verify ok"
            yield "backup stop"
        else:
            yield f"GET {choose.choice(paths)} {'200' if choose.random() < 0.95 else '304'}"


def unusual(choose: random.Random) -> str:
    """Return an event that is unusual after a request. Most of them consist of words that are usual elsewhere."""
    other = {"alice": "10.2.0", "bob": "172.16.3", "carol": "10.1.0", "dave": "192.168.7"}
    user = choose.choice(list(other))
    return choose.choice(
        [
            "backup stop",
            "backup verify failed",
            f"logout {user}",
            "save budget.csv",
            f"login {user} from {other[user]}.{choose.randrange(10, 100)}",
            f"GET {choose.choice(['/report.txt', '/login', '/api/backup'])} 200",
            "GET /search?q=" + "".join(choose.choices("0123456789abcdef", k=12)) + " 200",
            "GET /logo.png 500",
        ]
    )


def generate() -> None:
    """Write the log of normal days and the log of today."""
    for name, lines, seed, share in (("normal.log", 20_000, 1, 0.0), ("today.log", 5_000, 2, 0.06)):
        choose, second, log, marked = random.Random(seed), 0, [""], []
        for event, _ in zip(events(choose), range(lines), strict=False):
            second += choose.randrange(10)
            time = f"{second // 3600 % 24:02}:{second // 60 % 60:02}:{second % 60:02}"
            if len(log) > ENOUGH and " GET " in log[-1] and choose.random() < share:
                marked.append(f"{time} {unusual(choose)}\n")
                log.append(marked[-1])
            log.append(f"{time} {event}\n")
        Path(name).write_text("".join(log))
    Path("unusual.txt").write_text("".join(marked))


def by_rule(normal: list[str], today: list[str]) -> list[str]:
    """Return the lines of today with a word that is not in the normal lines, or with a length that none of them has.

    A digit counts as any other digit.
    """
    known = {word for line in normal for word in re.sub(r"\d", "0", line).split()}
    lengths = {len(line) for line in normal}
    return [line for line in today if set(re.sub(r"\d", "0", line).split()) - known or len(line) not in lengths]


def score(found: list[str]) -> None:
    """Print the precision and the recall of the lines that `watch` printed, and of the rule."""
    normal, today, marked = (Path(name).read_text().splitlines() for name in ("normal.log", "today.log", "unusual.txt"))
    for name, lines in (("model", [line.split("\t")[1] for line in found]), ("rule", by_rule(normal, today))):
        right = len(set(lines) & set(marked))
        precision, recall = right / max(1, len(lines)), right / len(marked)
        print(f"{name:6} {len(lines):4} lines, precision {precision:4.0%}, recall {recall:4.0%}")


def main(task: str, *arguments: str) -> None:
    """Do one of the three tasks of the module's description."""
    if task == "generate":
        generate()
    elif task == "watch":
        for bits, line in watch(arguments[0], Path(arguments[1]), sys.stdin):
            print(f"{bits:.1f}\t{line}", end="", flush=True)
    else:
        score(sys.stdin.read().splitlines())


if __name__ == "__main__":
    main(*sys.argv[1:])
