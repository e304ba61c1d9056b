"""Commands that try the node out, or use its scorer without it: demo, score, replay."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import ConfigOption, JsonOption
from dicomguard.cli.output import Bars, console, print_json, print_table, shorten

if TYPE_CHECKING:  # torch and pynetdicom, imported by the commands that need them
    from dicomguard.demo import Node, Outcome

_DEMO_NUMBERS = ("probability", "probability_drop", "logit_drop", "statistic", "threshold")
BUNDLES = Path(__file__).parents[2] / "config" / "bundles"


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command()(demo)
    app.command()(score)
    app.command()(replay)


def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the node running and say where to send and look.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole node on loopback with clean and attacked phantoms; exit 0 only if each ends where it should."""
    import logging

    from dicomguard import demo as stage
    from dicomguard.scoring.scorer import Scorer
    from dicomguard.site_key import SiteKey

    logging.getLogger("dicomguard").setLevel(logging.WARNING)
    folder = Path(tempfile.mkdtemp(prefix="dicomguard-demo-"))
    if not as_json:
        console.print(f'Key: SHA-256 of "{stage.KEY_PHRASE}", printed here so that every run draws the same noise.')
        console.print(
            f"Seeds: clean {list(stage.CLEAN_SEEDS)}, attacked {list(stage.ATTACKED_SEEDS)}.", highlight=False
        )
    with Bars(quiet=as_json) as bars:
        bars("load the phantom classifier", 0, 1)
        scorer = Scorer.load(BUNDLES / "phantom")
        bars("load the phantom classifier", 1, 1)
        specimens = stage.make_specimens(scorer, lambda _, done, total: bars("make and attack phantoms", done, total))
        paths = stage.write_files(specimens, folder / "sent")
        with stage.AiStandIn(folder / "ai") as ai:
            bars("start the node", 0, 1)
            bundles = [{"path": str(BUNDLES / "phantom"), "match": {"Modality": ["CR", "DX"]}}]
            node = stage.Node(folder, bundles=bundles, ai_port=ai.port, key=SiteKey.fixed(stage.KEY_PHRASE))
            node.start()
            try:
                bars("start the node", 1, 1)
                bars("send over DICOM", 0, len(paths))
                stage.send_all(paths, node)
                bars("send over DICOM", len(paths), len(paths))
                names = {"decided": "screen and decide", "arrived": "forward to the AI node"}
                with compose.open_ledger(compose.read_config(node.config_path), "cli") as ledger:
                    found = stage.watch(
                        node, ledger, specimens, ai.digests, lambda name, done, total: bars(names[name], done, total)
                    )
                bars.stop()
                _show_outcomes(found, as_json=as_json)
                is_right = all(outcome.is_right for outcome in found)
                if not as_json:
                    console.print(
                        "Every study ended where it should." if is_right else "[bold red]Some study ended elsewhere.[/]"
                    )
                if not is_right:
                    console.print(node.log_end(), markup=False)
                if keep:
                    _stay(node, folder)
            finally:
                node.stop()
    if not keep:
        stage.clear(folder)
    raise typer.Exit(0 if is_right else 1)


def _show_outcomes(found: list[Outcome], *, as_json: bool) -> None:
    rows = []
    for outcome in found:
        decision = outcome.decision
        scores = (decision.instances[0].scores or {}) if decision else {}
        worst, thresholds = scores.get("worst", {}), scores.get("thresholds", {})
        rows.append(
            {
                "study": outcome.specimen.name,
                "truth": outcome.specimen.truth,
                "shows": outcome.specimen.shows,
                "eps": outcome.specimen.strength,
                "answer": worst.get("predicted"),
                "probability": worst.get("probability"),
                "probability_drop": max(worst["probability_drops"]) if worst else None,
                "logit_drop": max(worst["logit_drops"]) if worst else None,
                "statistic": worst.get("statistic"),
                "threshold": thresholds.get("statistic"),
                "verdict": decision.verdict.value if decision else None,
                "reasons": list(decision.reasons) if decision else [],
                "disposition": decision.disposition.value if decision else None,
                "arrived": outcome.arrived,
                "right": outcome.is_right,
            }
        )
    if as_json:
        print_json(rows)
        return
    print_table(
        "Demo",
        ("study", "truth", "answer", "p", "p drop", "logit drop", "score", "limit", "verdict", "disposition", "right"),
        (
            (
                r["study"],
                r["shows"] if r["eps"] is None else f"{r['shows']}, attacked eps {r['eps']:.3f}",
                r["answer"],
                *(_number(r[name]) for name in _DEMO_NUMBERS),
                r["verdict"],
                r["disposition"],
                "yes" if r["right"] else "NO",
            )
            for r in rows
        ),
    )


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else ""


def _stay(node: Node, folder: Path) -> None:
    console.print("\nThe node goes on running; Ctrl-C stops it.", style="bold")
    command = Path(sys.executable).with_name("dicomguard")  # an environment need not be on the PATH
    for line in (
        f"  send     {command} replay FILE.dcm --to 127.0.0.1:{node.port} --called DICOMGUARD",
        f"  or       storescu -aet STORESCU -aec DICOMGUARD 127.0.0.1 {node.port} FILE.dcm",
        f"  look     {command} decisions -c {node.config_path}",
        f"  held     {command} quarantine list -c {node.config_path}",
        f"  files    {folder / 'sent'}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    try:
        node.wait()
    except KeyboardInterrupt:
        console.print("Stopping.")


def score(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", exists=True, help="DICOM files or folders.")],
    config: ConfigOption,
    as_json: JsonOption = False,
) -> None:
    """Score files as the node would, without a network. Exit 1 when one of them would be held."""
    from dicomguard.screen.files import find_files, judge_files

    settings = compose.read_config(config)
    held = False
    rows = []
    files = list(find_files(paths))
    with compose.decode_worker(settings) as worker, Bars(quiet=as_json or len(files) < 2) as bars:
        examiner = compose.examiner(settings, worker, compose.load_models(settings))
        for done, (path, found) in enumerate(judge_files(files, worker, examiner, compose.rules(settings)), 1):
            held |= found.holds
            if as_json:
                print_json([{"path": str(path), **found.to_json()}])
            worst = (found.scores or {}).get("worst", {})
            rows.append(
                (
                    path.name,
                    found.verdict.value,
                    "quarantine" if found.holds else "forward",
                    worst.get("predicted"),
                    *(_number(worst.get(name)) for name in ("probability", "statistic", "p_value")),
                    (found.scores or {}).get("assurance"),
                    ", ".join(found.reasons),
                    found.detail,
                )
            )
            bars("score", done, len(files))
    if not as_json:
        numbers = ("p", "score", "p-value", "assurance")
        print_table("Scores", ("file", "verdict", "alone it would", "answer", *numbers, "reasons", "detail"), rows)
    raise typer.Exit(1 if held else 0)


def replay(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[PATH...]", default_factory=list, show_default=False, exists=True, help="DICOM files or folders."
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="Where to send.")],
    called: Annotated[str, typer.Option("--called", metavar="AE", help="AE title of the node.")],
    calling: Annotated[str, typer.Option("--calling", metavar="AE", help="AE title to send as.")] = "REPLAY",
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest", help="Truth about the files; copied with results. Without PATH: sends what it lists."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Send files to a node as they are. DCMTK's and pynetdicom's storescu do just as well."""
    from dicomguard.replay import send
    from dicomguard.study import AeTitle, Peer

    if not paths and manifest is None:
        raise typer.BadParameter("name files or folders, or a manifest with --manifest", param_hint="PATH")
    host, _, port = to.rpartition(":")
    if not host or not port.isdigit():
        raise typer.BadParameter("write HOST:PORT, such as 127.0.0.1:11112", param_hint="--to")
    with Bars(quiet=as_json) as bars:
        sent = send(
            paths,
            Peer(AeTitle(called), host.strip("[]"), int(port)),
            calling=AeTitle(calling),
            manifest=manifest,
            progress=lambda done, total: bars("send", done, total),
        )
    if as_json:
        print_json(item.to_json() for item in sent)
    else:
        bad = [item for item in sent if not item.is_stored]
        print_table(
            "Not stored",
            ("file", "instance", "what was said"),
            ((i.path, shorten(i.sop_instance_uid), i.error) for i in bad),
        )
        console.print(f"{len(sent) - len(bad)} of {len(sent)} instances were stored.")
    raise typer.Exit(0 if all(item.is_stored for item in sent) else 1)
