"""The whole node on loopback, with made-up images: `dicomguard demo`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicomguard.cli import compose
from dicomguard.cli.compose import JsonOption
from dicomguard.cli.output import Bars, console, number, print_json, print_table

if TYPE_CHECKING:  # torch and pynetdicom, imported by the commands that need them
    from dicomguard.demo import Node, Outcome

_DEMO_NUMBERS = ("probability", "probability_drop", "logit_drop", "statistic", "threshold")
BUNDLES = Path(__file__).parents[2] / "config" / "bundles"


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command()(demo)


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
                *(number(r[name]) for name in _DEMO_NUMBERS),
                r["verdict"],
                r["disposition"],
                "yes" if r["right"] else "NO",
            )
            for r in rows
        ),
    )


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
