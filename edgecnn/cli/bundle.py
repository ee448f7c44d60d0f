"""`edgecnn bundle`."""

from pathlib import Path
from typing import Annotated

from edgecnn.cli.options import Json, emit_json, note, option
from edgecnn.cli.workstation_options import Force, RunArgument


def bundle(
    run: RunArgument = None,
    out: Annotated[Path | None, option("The bundle to write.", "RUN/NAME.edgecnn")] = None,
    only: Annotated[
        list[str] | None,
        option(
            "Include only models of this precision, such as int8, for a smaller file. May be repeated.",
            "all verified models",
            metavar="PRECISION",
        ),
    ] = None,
    serial: Annotated[
        int,
        option(
            "Serial number, by which a device recognises an older bundle: increase it each time, as with $(date +%s).",
            "none",
            metavar="N",
            min=0,
            max=2**53,
        ),
    ] = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Pack a verified run into one .edgecnn file.

    A bundle holds the models, labels, parity report and golden vectors, and the temperature and threshold that verify chose.

    \b
    Examples:
      edgecnn bundle --out cats.edgecnn
      edgecnn bundle --only int8 --serial 2
    """
    from edgecnn.runs import open_run

    opened = open_run(run)
    note(f"run {opened.path}")
    from edgecnn.cli.parity import note_warnings
    from edgecnn.stages.bundle import bundle_stage, verified_confidence
    from edgecnn.verify.parity import parity_report

    path, digest = bundle_stage(opened, out, only=only or (), serial=serial, force=force)
    if out is not None:
        note(f"use it: edgecnn classify --model {path}")
    report = parity_report(opened)
    confidence = verified_confidence(opened, report)
    note_warnings(report)
    size = path.stat().st_size
    if json:
        emit_json({"path": str(path), "size_bytes": size, "sha256": digest, "confidence": confidence})
    else:
        from edgecnn.report.card import confidence_line

        print(f"{path}  {size:,} bytes  SHA-256 {digest}")
        print(confidence_line(confidence, bool(report.folds) or opened.info.head_ships))
