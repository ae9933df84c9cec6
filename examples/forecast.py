"""Forecast a seasonal series with a model of text: the weekly CO2 in the air at Mauna Loa, 1958 to 2001.

    python forecast.py series > series.txt         the years before the last five, as symbols
    python forecast.py history 3 > history.txt     the series up to the third of the last five years
    python forecast.py decode 3 < sampled > f.csv  quantiles of a forecast of that year, from one line per sample
    python forecast.py score f1.csv … f5.csv       the error beside those of three plain forecasts

A symbol is the difference from the value 52 weeks earlier, in steps of 0.25 ppm. The season and most of the trend
cancel out, so that a small model has little left to learn. The data are public domain and are a part of statsmodels,
which is not imported.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

Values = np.ndarray[Any, Any]

SEASON, YEARS = 52, 5  # weeks of a season; seasons at the end that are not trained on
STEP = 0.25  # ppm
ZERO = ord("H")  # the symbol of no difference
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def read_series() -> Values:
    """Return the weekly values in ppm; missing weeks are interpolated."""
    package = importlib.util.find_spec("statsmodels")
    if package is None or package.origin is None:
        sys.exit("forecast.py reads a file of statsmodels: pip install statsmodels")
    file = Path(package.origin).parent / "datasets/co2/co2.csv"
    rows = csv.DictReader(file.read_text().splitlines())
    values = np.array([float(row["co2"] or "nan") for row in rows])
    known = np.flatnonzero(~np.isnan(values))
    return np.asarray(np.interp(np.arange(len(values)), known, values[known]))


def encode(values: Values) -> str:
    """Return one symbol for each value after the first season. Values outside the training range are clipped."""
    steps = np.rint((values[SEASON:] - values[:-SEASON]) / STEP).astype(int)
    train = steps[: cut(read_series(), 1) - SEASON]
    return "".join(chr(ZERO + step) for step in steps.clip(train.min(), train.max()))


def decode(text: str, before: Values) -> Values:
    """Return the values that the symbols of a text give after the values before it."""
    values = list(before)
    for symbol in text:
        values.append(values[-SEASON] + (ord(symbol) - ZERO) * STEP)
    return np.array(values[len(before) :])


def cut(series: Values, year: int) -> int:
    """Return the index of the first week of the forecast of a year from 1 to YEARS."""
    return len(series) - (YEARS + 1 - year) * SEASON


def forecast(year: int, lines: list[str]) -> Values:
    """Return the quantiles (SEASON, len(QUANTILES)) of the sampled continuations."""
    series = read_series()
    before = series[: cut(series, year)]
    paths = [decode(line, before) for line in lines]
    return np.asarray(np.quantile(np.array(paths), QUANTILES, axis=0).T)


def scaled_errors(medians: list[Values]) -> dict[str, list[float]]:
    """Return the mean absolute scaled error of each year, by method.

    The unit is the mean absolute error of the seasonal naive forecast within the training years.
    """
    series = read_series()
    train = series[: cut(series, 1)]
    unit = np.abs(train[SEASON:] - train[:-SEASON]).mean()
    names = ("model", "seasonal naive", "seasonal naive + mean difference", "seasonal naive + last difference")
    errors: dict[str, list[float]] = {name: [] for name in names}
    for year, median in enumerate(medians, 1):
        start = cut(series, year)
        truth, naive = series[start : start + SEASON], series[start - SEASON : start]
        differences = series[SEASON:start] - series[: start - SEASON]
        for name, values in zip(
            errors, (median, naive, naive + differences.mean(), naive + differences[-1]), strict=True
        ):
            errors[name].append(float(np.abs(truth - values).mean() / unit))
    return errors


def main(task: str, *arguments: str) -> None:
    """Do one of the four tasks of the module's description."""
    if task == "series":
        series = read_series()
        print(encode(series[: cut(series, 1)]), end="")
    elif task == "history":
        series = read_series()
        print(encode(series[: cut(series, int(arguments[0]))]), end="")
    elif task == "decode":
        np.savetxt(sys.stdout, forecast(int(arguments[0]), sys.stdin.read().split()), fmt="%.2f", delimiter=",")
    else:
        forecasts = [np.loadtxt(file, delimiter=",") for file in arguments]
        for name, errors in scaled_errors([table[:, QUANTILES.index(0.5)] for table in forecasts]).items():
            print(f"{name:33}" + "".join(f"{error:6.2f}" for error in errors) + f"   mean {np.mean(errors):.2f}")
        series = read_series()
        inside = [
            np.mean((table[:, 0] <= truth) & (truth <= table[:, -1]))
            for year, table in enumerate(forecasts, 1)
            for truth in [series[cut(series, year) : cut(series, year) + SEASON]]
        ]
        print(f"{np.mean(inside):.0%} of the weeks are between the 5 % and the 95 % quantile")


if __name__ == "__main__":
    main(*sys.argv[1:])
