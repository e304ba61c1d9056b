"""One page of everything that was measured: Markdown to keep, HTML to open, figures inside."""

from __future__ import annotations

import base64
import html
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from markdown_it import MarkdownIt

from dicomguard.errors import DicomguardError
from dicomguard.lab import reasons as reasons_file
from dicomguard.lab.benchmark.cell import RESULT
from dicomguard.lab.report import further_sections, joel_section, noise_section, papers, reproduced
from dicomguard.lab.whole import read_object, write_text

Result = Mapping[str, Any]
_TITLES: Final[Mapping[str, str]] = {
    "noise-consistency": "The noise-consistency paper",
    "joel2023": f"Joel et al. 2023 ({papers.JOEL})",
    "adaptive": "Attackers who know the detector",
    "natural": "Natural change",
    "certified": "Certificates",
}
_SECTIONS: Final[Mapping[str, Callable[[Result, Path], Iterator[str]]]] = {
    "noise-consistency": lambda found, _: noise_section.section(found),
    "joel2023": joel_section.section,
    "adaptive": further_sections.adaptive,
    "natural": further_sections.natural,
    "certified": further_sections.certified,
}
_PARTS: Final = ("grid", "cells", "charts", "command", "versions", "reductions", "victims")
_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 90rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1, h2, h3 { line-height: 1.2; margin-top: 2em; } h2 { border-bottom: 2px solid #0072B2; padding-bottom: .2em; }
table { border-collapse: collapse; font-size: .82rem; display: block; overflow-x: auto; margin: 1em 0; }
td.n { white-space: nowrap; } td:first-child { min-width: 9em; }
th, td { border: 1px solid #ccc; padding: .25em .6em; text-align: left; vertical-align: top; }
th { background: #eef4f8; } tr:nth-child(even) td { background: #fafafa; }
img { max-width: 100%; } code { background: #f2f2f2; padding: .1em .3em; }
"""


def write(results: Path, out: Path, profile: str, *, command: str, work: Path | None = None) -> list[Path]:
    """`report.md`, `report.html` and `figures/` under `out`, of the suites that have results of that profile.

    `work`: where the cells are kept; their pictures of the data sets are shown, too.

    Raises:
        DicomguardError: there are none, or one cannot be read.

    """
    found = {suite: read(results, suite, profile) for suite in _TITLES}
    there = {suite: result for suite, result in found.items() if result is not None}
    if not there:
        raise DicomguardError(
            f"{results} holds no results of profile {profile}.",
            advice=f"Run 'dicomguard lab benchmark --suite noise-consistency --profile {profile}' first.",
        )
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    proofs = [_json(path) for path in sorted(results.glob("soundness-*.json"))]
    there = {
        suite: {**one, "charts": _shown(one, results, work, figures), "proofs": proofs} for suite, one in there.items()
    }
    missing = [suite for suite in found if suite not in there]
    lines = _page(there, missing, reasons_file.read(results / reproduced.REASONS), figures, profile, command)
    text = "\n".join(lines) + "\n"
    markdown, page = out / "report.md", out / "report.html"
    write_text(markdown, text)
    write_text(page, as_html(text, out))
    return [markdown, page]


def _shown(found: Result, results: Path, work: Path | None, figures: Path) -> dict[str, list[str]]:
    """Copy charts, and pictures from the cells, to the page's figures; by victim, as names relative to the page.

    Pictures stay on the machine that made them, where results were taken over from another.
    """
    sources = {victim: [results / name for name in names] for victim, names in found["charts"].items()}
    for name, key in found["cells"].items() if work is not None else ():
        kind, _, victim = name.partition("/")
        if kind == "pictures":
            folder = work / kind / key
            shown = _json(folder / RESULT)["pictures"] if folder.exists() else []
            pictures = [folder / picture for picture in shown]
            sources.setdefault(victim, []).extend(picture for picture in pictures if picture.exists())
    copied: dict[str, list[str]] = {}
    for victim, paths in sources.items():
        for path in paths:
            name = f"{victim.replace('/', '-')}--{path.name.rpartition('--')[2]}"
            if not path.exists():
                raise DicomguardError(f"{path} is not there any more.", advice="Run the benchmark again.")
            shutil.copyfile(path, figures / name)
            copied.setdefault(victim, []).append(f"{figures.name}/{name}")
    return copied


def read(results: Path, suite: str, profile: str) -> Result | None:
    """A suite's tables; None where it has not been run to its end.

    Raises:
        DicomguardError: the file cannot be read.

    """
    path = results / f"lab-{suite}-{profile}.json"
    if not path.exists():
        return None
    found = _json(path)
    lacking = [part for part in _PARTS if part not in found]
    if lacking:
        raise DicomguardError(
            f"{path} has no {', '.join(lacking)}: it is of another version.", advice="Run the benchmark again."
        )
    return found


def _json(path: Path) -> Result:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise DicomguardError(f"{path} cannot be read: {error}.", advice="Run the benchmark again.") from error


def _page(
    there: Mapping[str, Result],
    missing: list[str],
    reasons: Mapping[str, str],
    figures: Path,
    profile: str,
    command: str,
) -> Iterator[str]:
    yield f"# Lab report, profile {profile}\n"
    yield (
        "Attacks are counted after rounding to stored bits unless a column says *floats*. Intervals are 95 %: exact"
        " (Clopper-Pearson) for shares of files that are one a patient, bootstraps over patients where pictures hang"
        " together, bootstraps over files for areas (none where files are wholly apart, of which a bootstrap has no"
        " doubt); few patients make bootstraps too narrow. *eps* is a share of the"
        " presentation range. An attack that stops at some number of successes has success rates that are a little too"
        " large. Thresholds are set on clean calibration files, by patient apart from those that anything was fitted"
        " on.\n"
    )
    yield f"Made by `{command}`.\n"
    for suite in missing:
        line = f"dicomguard lab benchmark --suite {suite} --profile {profile}"
        yield f"*{_TITLES[suite]}: not measured yet (`{line}`).*\n"
    yield from reproduced.section(there, reasons)
    for suite, found in there.items():
        yield f"## {_TITLES[suite]}\n"
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        yield f"`{found['command']}`; {versions}.\n"
        for reduction in found["reductions"]:
            yield f"- {reduction}"
        for victim in found["victims"]:
            yield f"- Victim {victim['name']}: {victim['weights']}; reduced against the paper: {victim['reduction']}"
        yield ""
        yield from _SECTIONS[suite](found, figures)


def as_html(text: str, folder: Path) -> str:
    """The page with its figures inside, so that one file can be sent."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def inlined(match: re.Match[str]) -> str:
        path = folder / match.group(1)
        return f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"'

    body = re.sub(r'src="(figures/[^"]+\.png)"', inlined, body)
    # What begins with a number, or says that there is none, is not broken over lines.
    body = re.sub(r"<td>(?=[-+]?\.?\d|-</td>)(?=[^<]{0,40}</td>)", '<td class="n">', body)
    title = html.escape(text.splitlines()[0].lstrip("# "))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}</body></html>\n'
