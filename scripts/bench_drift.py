"""How often the drift watch is wrong, and how soon it is right: simulated streams, a JSON object for each setting."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dicomguard.lab.whole import write_text
from dicomguard.screen import drift
from dicomguard.screen.drift import SCALES, Baseline, State

RAISED = (State.MOVED, State.MORE_ALARMS)
_exactly = drift.distance_p


def _quickly(steps: int, n: int, m: int) -> float:
    """The asymptotic law where nothing hangs on the digits (over 1e-3), the exact one below: a hundred times faster."""
    # The series needs some twenty terms above 0.04; below that the answer is 1 to many digits.
    squared = (steps / (n * m)) ** 2 * n * m / (n + m)
    rough = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * squared) for k in range(1, 20)) if squared > 0.04 else 1.0
    return min(1.0, rough) if rough > 1e-3 else _exactly(steps, n, m)


# u is uniform: the share of clean images that are more surprising than this one. Small is surprising.
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
DRIFTS: dict[str, Change] = {
    "p^0.7": lambda u, _: u**0.7,
    "p^1.3": lambda u, _: u**1.3,
    "10 % tiny p": lambda u, r: np.where(r.random(u.shape) < 0.1, 1e-4 * u, u),
    "surprise + 0.5": lambda u, _: u * math.exp(-0.5),
    "surprise + 0.2": lambda u, _: u * math.exp(-0.2),
    "half the images are another scanner's, + 0.5": lambda u, r: np.where(r.random(u.shape) < 0.5, u * 0.6065, u),
}


def states(u: np.ndarray, held_back: np.ndarray, alpha: float, window: int, level: float) -> Iterator[State]:
    """The state after each window of a stream."""
    baseline = Baseline("simulated", len(held_back), alpha)
    ranks = np.searchsorted(np.sort(held_back), u)
    state = State.COLLECTING
    for end in range(window, len(u) + 1, window):
        starts = sorted({max(0, end - window * scale) for scale in SCALES}, reverse=True)
        looks = [drift.look(ranks[start:end], baseline) for start in starts]
        state = drift.judge(looks, level, state)
        yield state


def false_events(images: int, m: int, arguments: argparse.Namespace, random: np.random.Generator) -> dict[str, object]:
    counts, kinds = [], {state.value: 0 for state in RAISED}
    for _ in range(arguments.repeats):
        before, raised = State.COLLECTING, 0
        for state in states(
            random.random(images), random.random(m), arguments.alpha, arguments.window, arguments.level
        ):
            if state in RAISED and state is not before:
                raised += 1
                kinds[state.value] += 1
            before = state
        counts.append(raised)
    return {
        "setting": "no drift", "m": m, "images": images, "streams": len(counts), "events": sum(counts),
        "streams_with_any": sum(count > 0 for count in counts), **kinds,
        "bound_on_mean_events": arguments.level * images / arguments.window,
    }  # fmt: skip


def delay(name: str, m: int, arguments: argparse.Namespace, random: np.random.Generator) -> dict[str, object]:
    """Clean for five windows, then changed: images from the change to the event, and which event it is."""
    clean, limit = 5 * arguments.window, 100 * arguments.window
    delays, kinds, early = [], {state.value: 0 for state in RAISED}, 0
    for _ in range(arguments.repeats):
        u = random.random(clean + limit)
        u[clean:] = DRIFTS[name](u[clean:], random)
        found = math.inf
        for number, state in enumerate(states(u, random.random(m), arguments.alpha, arguments.window, arguments.level)):
            if state in RAISED:
                found = (number + 1) * arguments.window - clean
                early += found <= 0
                kinds[state.value] += 1
                break
        delays.append(found)
    quantiles = (float(x) for x in np.quantile(delays, [0.1, 0.5, 0.9], method="higher"))
    low, middle, high = (x if math.isfinite(x) else None for x in quantiles)
    return {
        "setting": name, "m": m, "streams": len(delays), "found_within": limit,
        "found": sum(map(math.isfinite, delays)), "early": early,
        "images_p10": low, "images_median": middle, "images_p90": high, **kinds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--window", type=int, default=200)
    parser.add_argument("--level", type=float, default=1e-4)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--m", type=int, nargs="+", default=[270, 700])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results/drift-rates.json"))
    arguments = parser.parse_args()
    drift.distance_p = _quickly  # type: ignore[assignment]  # see there
    lines = []
    for m in arguments.m:
        random = np.random.default_rng([arguments.seed, m])
        lines.append(json.dumps(false_events(arguments.images, m, arguments, random)))
        print(lines[-1], flush=True)
        for name in DRIFTS:
            lines.append(json.dumps(delay(name, m, arguments, random)))
            print(lines[-1], flush=True)
    write_text(arguments.out, "[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
