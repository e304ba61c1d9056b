"""The report on Joel et al. 2023: detectors against attacks, what its leaks were worth, and ways to defend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dicomguard.lab.benchmark.kinds.joel import HARMLESS
from dicomguard.lab.report import papers
from dicomguard.lab.report.curves import Curve, shares
from dicomguard.lab.report.words import EPS, area, both_rates, counted, of_data_sets, percent, rate, table

Result = Mapping[str, Any]
_SHOWN = ("0.004", "0.008")
_PROTOCOLS = {"paper": "as published", "floats": "floats alone", "change": "change alone", "closed": "closed"}
_HIGHER = "CW-L2"


def section(found: Result, figures: Path) -> Iterator[str]:
    """Markdown of one run of the suite; figures are drawn into a folder."""
    grid = found["grid"]
    main = [one for one in grid if taught_as_published(found, one)]
    plain = [one for one in main if one["victim"] == "plain"]
    closed, published = ([one for one in plain if one["protocol"] == protocol] for protocol in ("closed", "paper"))
    yield "### Victims\n"
    yield _victims(grid)
    yield from of_data_sets(one["training"] for one in grid)
    yield "### Detectors (Table 1)\n"
    yield (
        "Accuracy on clean and attacked pictures together, percent; intervals are over patients, or what stands in for"
        " them (pictures, blocks of neighbours), because a picture counts twice. Every attacked picture counts as"
        " attacked, whether or not the victim was misled, as in the paper's code. The paper, over its tasks and attacks"
        " at eps .004 and .008: "
        + "; ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in papers.JOEL_TABLE_1.items())
        + ".\n"
    )
    yield (
        "**Leaks closed**: the epoch is chosen on validation files, patients stand on one side, attacked pictures are"
        " files, and clean pictures with noise of the attack's strength, and compressed ones, were taught as clean.\n"
    )
    yield _detectors(closed)
    yield from _reductions(closed)
    if published:
        yield (
            "**As published**: the epoch is chosen on the test pictures, the split is by picture, nothing but attacks"
            " changes a picture, and attacked pictures are floats while clean ones are k/255 (files of 8 bits, whatever"
            " the data set's have elsewhere; CT images may not have so few, PS3.3 C.8.2.1, and are dithered files here,"
            " too).\n"
        )
        yield _detectors(published)
        yield from _reductions(published)
    yield "### Detected | false alarms\n"
    yield (
        "Percent of attacked and of clean pictures that are flagged, by the detector's own decision; intervals over"
        " patients.\n"
    )
    yield _both([*closed, *published])
    yield (
        "The same, leaks closed, without a threshold (area under the ROC), and for what the attack turned round:"
        " flagged among pictures that the victim answers rightly clean and wrongly attacked.\n"
    )
    yield _areas(closed)
    yield from _leaks(plain)
    yield "### Is it the attack that they detect?\n"
    yield (
        "Share flagged of clean pictures, of the same with uniform noise of an attack's strength or compressed, which"
        " are no attacks, and of pictures attacked at that strength. A detector that flags the noise as often as the"
        " attack detects change, not attack.\n"
    )
    yield _control(plain)
    yield from _defences(found, main)
    yield from _budgets(grid)
    yield from _teachers(found, grid)
    yield from _figures(closed, figures)


def taught_as_published(found: Result, one: Result) -> bool:
    """Whether the detectors of a row were taught on what the paper's code teaches with."""
    teacher = one["taught_on"]
    eps: float = found["taught_on"].get(one["data_set"], 0.008)
    return bool(teacher["attack"] == "BIM" and teacher["eps"] == eps)


def is_in_table_1(name: str) -> bool:
    """Whether a test is one of the paper's: its attacks, at its two budgets."""
    return name.endswith(_SHOWN) and not name.startswith(HARMLESS)


def called(row: Result) -> str:
    """A detector by the paper's name; whether something else stands in for it."""
    return f"{row['detector']}{' (stand-in)' * bool(row['reductions'])}"


def _victims(grid: Sequence[Result]) -> str:
    seen: dict[tuple[str, str], Result] = {}
    for one in grid:
        seen.setdefault((one["victim"], set_of(one)), one)
    rows = []
    for (kind, data_set), one in seen.items():
        attacked = [
            f"{name} {counted(share)}" for name, share in one["attacked_accuracy"].items() if is_in_table_1(name)
        ]
        training = one["training"]
        recall = "; ".join(f"{label} {rate(share)}" for label, share in training["test"]["recall"].items())
        reduced = training["reduction"] or "none"
        rows.append([kind, data_set, rate(one["clean_accuracy"]), recall, "; ".join(attacked), reduced])
    columns = ["victim", "data set", "accuracy, clean", "recall, test files", "accuracy, attacked pictures alone"]
    return table([*columns, "reduced against the paper"], rows)


def _columns(grid: Sequence[Result]) -> list[str]:
    """Attacks at the paper's two budgets, and those beyond first order."""
    names = dict.fromkeys(name for one in grid for row in one["rows"] for name in row["tests"])
    return [name for name in names if name.startswith(_HIGHER) or is_in_table_1(name)]


def _detectors(grid: Sequence[Result]) -> str:
    columns = _columns(grid)
    rows = []
    for one in grid:
        for row in one["rows"]:
            cells = [rate(row["tests"].get(name, {}).get("accuracy")) for name in columns]
            tested = f"{row['pictures']['test']} of {row['accuracy']['clusters']}"
            rows.append([set_of(one), f"BIM {one['taught_on']['eps']:g}", called(row), tested, *cells])
    return table(["data set", "taught on", "detector", "test pictures of patients", *columns], rows)


def set_of(one: Result) -> str:
    """The data set of a row; the victim's seed where it is not the first."""
    return one["data_set"] if not one["seed"] else f"{one['data_set']}, seed {one['seed']}"


def _reductions(grid: Sequence[Result]) -> Iterator[str]:
    """What the detectors' names do not say: which networks they really are."""
    words: dict[str, dict[str, None]] = {}
    for one in grid:
        for row in one["rows"]:
            words.setdefault(row["detector"], {}).update(dict.fromkeys(row["reductions"]))
    for name, found in words.items():
        if found:
            yield f"- **{name}**, reduced against the paper: {'; '.join(found)}."
    yield ""


def _both(grid: Sequence[Result]) -> str:
    columns = _columns(grid)
    rows = [
        [
            set_of(one),
            _PROTOCOLS[one["protocol"]],
            called(row),
            *(
                both_rates(row["tests"][name]["flagged"], row["tests"][name]["clean_flagged"])
                if name in row["tests"]
                else "-"
                for name in columns
            ),
        ]
        for one in grid
        for row in one["rows"]
    ]
    return table(["data set", "leaks", "detector", *columns], rows)


def _areas(grid: Sequence[Result]) -> str:
    columns = _columns(grid)
    rows = []
    for one in grid:
        for row in one["rows"]:
            tests = [row["tests"].get(name) for name in columns]
            cells = ["-" if test is None else f"{area(test['auroc'])}; {counted(test['turned'])}" for test in tests]
            rows.append([set_of(one), called(row), *cells])
    return table(["data set", "detector", *columns], rows)


def _leaks(grid: Sequence[Result]) -> Iterator[str]:
    """One row for each data set and detector: its accuracy under each protocol."""
    by_protocol = {(set_of(one), one["protocol"]): one for one in grid}
    rows = []
    for data_set in dict.fromkeys(label for label, _ in by_protocol):
        runs = {protocol: by_protocol.get((data_set, protocol)) for protocol in _PROTOCOLS}
        first = next(one for one in runs.values() if one is not None)
        for place, row in enumerate(first["rows"]):
            found = [one and one["rows"][place] for one in runs.values()]
            published = found[0]
            rows.append(
                [
                    data_set,
                    called(row),
                    *("-" if one is None else rate(one["accuracy"]) for one in found),
                    "-" if published is None else f"{published['shared_patients']} of {published['pictures']['test']}",
                ]
            )
    if len({protocol for _, protocol in by_protocol}) > 1:
        yield "### What the leaks were worth\n"
        yield (
            "Accuracy on the attack that taught, percent. *Floats alone*: only the pictures leak. *Change alone*: all"
            " is closed, but no harmless change was taught as clean. *Shared*: as published, test pictures of patients"
            " whose other pictures taught (none where a set has one picture for each group). As published two thirds of"
            " the pictures teach; elsewhere a fifth of these chooses the epoch. As published LR, RF and SVM have"
            " flattened features, elsewhere averaged and standardised ones.\n"
        )
        yield table(["data set", "detector", *_PROTOCOLS.values(), "shared"], rows)


def _control(grid: Sequence[Result]) -> str:
    tested = dict.fromkeys(name for one in grid for row in one["rows"] for name in row["tests"])
    harmless = [name for name in tested if name.startswith(HARMLESS)]
    attacks = [name for name in tested if name.startswith("BIM") and is_in_table_1(name)]
    rows = []
    for one in grid:
        for row in one["rows"]:
            cells = [counted(row["tests"].get(name, {}).get("flagged")) for name in (*harmless, *attacks)]
            rows.append([set_of(one), _PROTOCOLS[one["protocol"]], called(row), counted(row["clean_flagged"]), *cells])
    return table(["data set", "leaks", "detector", "clean", *harmless, *attacks], rows)


def _defences(found: Result, grid: Sequence[Result]) -> Iterator[str]:
    attack, eps = found["table_2"]
    name = f"{attack} {eps:g}"
    rows = []
    for label in dict.fromkeys(set_of(one) for one in grid):
        runs = {one["victim"]: one for one in grid if set_of(one) == label and one["protocol"] == "closed"}
        if not {"plain", "hardened"} <= runs.keys():
            continue
        plain, hardened = runs["plain"], runs["hardened"]
        printed = papers.JOEL_TABLE_2.get(plain["task"], {})
        for place, row in enumerate(plain["rows"]):
            other = hardened["rows"][place]
            first, second = row["tests"].get(name), other["tests"].get(name)
            if first is None or second is None:
                continue
            rows.append(
                [
                    label,
                    called(row),
                    f"{rate(first['victim'])} [{printed.get('baseline', '-')}]",
                    f"{percent(first['combined']['A1'])} [{printed.get('detection', '-')}]",
                    f"{rate(second['victim'])} [{printed.get('adversarial training', '-')}]",
                    f"{percent(second['combined']['A1'])} [{printed.get('both', '-')}]",
                    *(percent(one["combined"][kind]) for one in (first, second) for kind in ("A2", "A3")),
                ]
            )
    if not rows:
        return
    yield "### Ways to defend (Table 2)\n"
    yield (
        f"Under {name}, over clean and attacked test pictures together: a victim that is always right when clean and"
        " always wrong when attacked has 50. In square brackets what the paper prints for its own data set, which the"
        " one here stands in for. Where *nothing* is far above the paper's, there is little to win. *A1* is the paper's"
        " own count, in which attacked pictures that are rejected vanish; *A2* counts them as right; *A3* is the share"
        " of attacked pictures that pass with a wrong answer (lower is better). Percent.\n"
    )
    columns = ["nothing", "detection, A1", "adversarial training", "both, A1"]
    apart = ["detection, A2", "detection, A3", "both, A2", "both, A3"]
    yield table(["data set", "detector", *columns, *apart], rows)


def _budgets(grid: Sequence[Result]) -> Iterator[str]:
    """Taught on one budget of BIM, tested on all."""
    plain = [one for one in grid if one["victim"] == "plain" and one["protocol"] == "closed"]
    for label in dict.fromkeys(set_of(one) for one in plain):
        members = [one for one in plain if set_of(one) == label and one["taught_on"]["attack"] == "BIM"]
        members.sort(key=lambda one: one["taught_on"]["eps"])
        if len(members) < 2:
            continue
        tested = [name for name in members[0]["rows"][0]["tests"] if name.startswith("BIM")]
        yield f"### Taught on one budget, tested on another: {label}\n"
        yield _matrix(members, tested)


def _teachers(found: Result, grid: Sequence[Result]) -> Iterator[str]:
    """Taught on one attack, tested on all, at the budget that the paper's code teaches with."""
    plain = [one for one in grid if one["victim"] == "plain" and one["protocol"] == "closed"]
    for label in dict.fromkeys(set_of(one) for one in plain):
        members = [one for one in plain if set_of(one) == label]
        eps = found["taught_on"].get(members[0]["data_set"])
        members = [one for one in members if one["taught_on"]["eps"] == eps]
        if len(members) < 2:
            continue
        names = list(members[0]["rows"][0]["tests"])
        tested = [name for name in names if name.startswith(_HIGHER) or name.endswith(f" {eps:g}")]
        yield f"### Taught on one attack, tested on another: {label}\n"
        yield _matrix(members, [name for name in tested if not name.startswith(HARMLESS)])


def _matrix(members: Sequence[Result], tested: Sequence[str]) -> str:
    rows = [
        [
            f"{one['taught_on']['attack']} {one['taught_on']['eps']:g}",
            called(row),
            *(counted(row["tests"][name]["accuracy"]) for name in tested),
        ]
        for one in members
        for row in one["rows"]
    ]
    return table(["taught on", "detector", *tested], rows)


def _figures(grid: Sequence[Result], figures: Path) -> Iterator[str]:
    """Figures 1 and 2: accuracy of the victim and of the detectors against eps."""
    for one in grid:
        panels: dict[str, list[Curve]] = {}
        for attack in ("FGSM", "BIM", "PGD"):
            names = [name for name in one["rows"][0]["tests"] if name.startswith(f"{attack} ")]
            if len(names) < 2:
                continue
            at = sorted((float(name.split()[1]), name) for name in names)
            victim = Curve(
                "victim, attacked pictures alone",
                [(eps, one["attacked_accuracy"][name]) for eps, name in at],
                dashed=True,
            )
            detectors = [
                Curve(called(row), [(eps, row["tests"][name]["accuracy"]) for eps, name in at]) for row in one["rows"]
            ]
            panels[attack] = [*detectors, victim]
        if panels:
            path = shares(
                panels,
                figures / f"joel-{one['data_set']}-{one['seed']}.png",
                x=EPS,
                y="accuracy",
                log=True,
                bar=(0.5, "a guess, for detectors"),
            )
            yield (
                "Detectors: of clean and attacked test pictures together. Victim: of attacked pictures alone, all of"
                " them; one that is always misled has 0.\n"
            )
            yield f"![Accuracy of detectors and victim against eps on {set_of(one)}](figures/{path.name})\n"
