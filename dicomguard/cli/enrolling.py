"""`dicomguard enrol`: make a bundle ready for this site, or show what it promises."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markdown import Markdown

from dicomguard.cli import compose
from dicomguard.cli.compose import DecoderOption, JsonOption
from dicomguard.cli.output import Bars, console, print_json
from dicomguard.cli.stages import stages
from dicomguard.decision import Fault
from dicomguard.errors import BundleError

if TYPE_CHECKING:  # imported by the commands that need them
    from dicomguard.enrol.cleanset import Clean
    from dicomguard.pixels.sandbox import DecodeWorker
    from dicomguard.scoring.head import Answer, Head


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(enrol)


def enrol(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The bundle's folder.")],
    clean: Annotated[
        Path | None, typer.Option("--clean", exists=True, help="Clean DICOM studies of this site, trusted.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", exists=True, dir_okay=False, help="CSV with the columns file,label; several with |."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print what the present enrolment promises.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the enrolment (default: in the bundle's folder).")
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", min=0.001, max=0.5, help="False alarms per clean image.")] = 0.05,
    eps: Annotated[
        float, typer.Option("--eps", min=0, max=0.1, help="The guard's pixel budget, of its range; 0: no guard.")
    ] = 0.004,
    sigma: Annotated[
        float | None, typer.Option("--sigma", min=0.05, max=2, help="The guard's noise (default: chosen for --eps).")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option("--window", help="LOW,HIGH: the guard's range in modality units, such as -1000,1000 for CT."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="Where the node will score: cpu, cuda, cuda:1 ... An enrolment is for one.")
    ] = "cpu",
    config: DecoderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle ready for this site from clean studies, and print what it can promise."""
    from dicomguard.enrol import statement
    from dicomguard.enrol.cleanset import Gathered
    from dicomguard.enrol.enrolling import Wishes
    from dicomguard.enrol.enrolling import enrol as make
    from dicomguard.scoring.bundle import Bundle
    from dicomguard.scoring.enrolment import FOLDER
    from dicomguard.scoring.scorer import Scorer
    from dicomguard.screen.files import find_files

    if show == (clean is not None):
        raise typer.BadParameter("give either --clean with a folder of clean studies, or --show")
    if clean is not None:
        limits = _range(window)
        scorer = Scorer(Bundle(bundle), device=device)
        gathered = Gathered(scorer, limits, wants_guard=eps > 0)
        files = list(find_files([clean]))
        truths = {} if labels is None else _match(labels, _read_labels(labels, scorer.head), clean, files)
        with compose.plain_decode_worker(config) as worker, Bars(quiet=as_json) as bars:
            for done, path in enumerate(files, 1):
                found = list(_frames(path, worker, truths.get(path)))
                gathered.add_all(found)
                gathered.unreadable += not found
                bars("read clean images", done, len(files))
            if not gathered.images:
                raise BundleError(
                    f"There is no readable DICOM image in {clean}.", advice="Give a folder of clean studies."
                )
            if gathered.left_out and not as_json:
                console.print(
                    f"{len(gathered.left_out)} image(s) are left out: palette colour, or nothing for a guard to see."
                    " The node holds such images as unenrolled_range.",
                    markup=False,
                )
            wishes = Wishes(alpha=alpha, eps=eps or None, sigma=sigma, window=limits)
            source = f"{gathered.images} images of this site"
            make(scorer, gathered, source, wishes, out or bundle / FOLDER, stages(bars, 1000))
    enrolled = Scorer.load(bundle, out).enrolment
    if enrolled is None:
        raise BundleError(f"{bundle} is not enrolled.", advice="Run 'dicomguard enrol' with --clean.")
    if as_json:
        print_json([statement.facts(enrolled)])
    else:
        console.print(Markdown(statement.page(enrolled)))


def _frames(path: Path, worker: DecodeWorker, truth: Answer | None) -> Iterator[Clean]:
    """Every frame of a file; none of one that is no image or cannot be read (the node would hold it)."""
    from dicomguard.enrol.cleanset import Clean

    located = worker.locate(path)
    if isinstance(located, Fault):
        return
    header = worker.header(path, *located, [])
    if isinstance(header, Fault) or not header.is_image:
        return
    for start, count in header.parts():
        images = worker.frames(path, *located, start, count)
        if isinstance(images, Fault):
            return
        for image in images:
            # Images without a patient are taken to be of different ones: the study is all that is known.
            patient = header.patient_id or header.study_instance_uid
            yield Clean(image, patient, header.study_instance_uid, header.sha256, truth)


def _match(table: Path, truths: dict[str, Answer], clean: Path, files: Sequence[Path]) -> dict[Path, Answer]:
    """Which file each line means: by its path below the folder, or by its name where that is the only such file."""
    named: dict[str, list[Path]] = {}
    for path in files:
        named.setdefault(path.name, []).append(path)
        named[path.relative_to(clean).as_posix()] = [path]
    found: dict[Path, Answer] = {}
    for name, answer in truths.items():
        meant = named.get(name, [])
        if len(meant) > 1:
            raise BundleError(
                f"{table}: {name} is the name of {len(meant)} files.", advice=f"Write their paths below {clean}."
            )
        found |= dict.fromkeys(meant, answer)
    if not found:
        raise BundleError(f"{table} names no file in {clean}.", advice="Write paths below that folder, or file names.")
    return found


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter("write two numbers such as -1000,1000", param_hint="--window") from error
    if not low < high:
        raise typer.BadParameter("the low end comes first", param_hint="--window")
    return low, high


def _read_labels(table: Path, reading: Head) -> dict[str, Answer]:
    """File as it is written -> right answer. Raises BundleError naming the line that cannot be used."""
    found: dict[str, Answer] = {}
    try:
        text = table.read_text("utf-8-sig")  # spreadsheets write the mark, others do not
    except UnicodeDecodeError as error:
        raise BundleError(
            f"{table} is no CSV in UTF-8: {error.reason}.", advice="Export it as CSV in UTF-8."
        ) from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if not {"file", "label"} <= set(rows.fieldnames or ()):
        raise BundleError(f"{table} lacks the columns file,label.", advice="Name them in its first line.")
    for number, row in enumerate(rows, 2):
        if not row["file"]:
            raise BundleError(f"{table}, line {number}: there is no file.", advice="Name it, or remove the line.")
        names = [name.strip() for name in (row["label"] or "").split("|") if name.strip()]
        try:
            answer = reading.answer_of(names)
        except ValueError as error:
            known = ", ".join(itertools.islice(reading.labels, 10))
            raise BundleError(f"{table}, line {number}: {error}.", advice=f"The labels are {known}.") from error
        if found.setdefault(row["file"], answer) != answer:
            raise BundleError(
                f"{table}, line {number}: {row['file']} has another label further up.", advice="Keep one of the two."
            )
    return found
