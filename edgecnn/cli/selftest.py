"""`edgecnn selftest`."""

from typing import TYPE_CHECKING, Annotated

from edgecnn.cli.options import Json, Model, emit_json, note, option
from edgecnn.labels import printable

if TYPE_CHECKING:
    from edgecnn.runtime.selftest import SelftestRow


def selftest(
    model: Model = None,
    engine: Annotated[
        list[str] | None,
        option("Check only this engine. May be repeated.", "all that are installed", metavar="NAME"),
    ] = None,
    threads: Annotated[int, option("Threads per inference.", min=1, max=256)] = 1,
    limit: Annotated[
        float, option("Seconds that one model may take; all together, five times as long.", min=1, metavar="SECONDS")
    ] = 60.0,
    json: Json = False,
) -> None:
    """Replay a bundle's golden vectors on this device's engines.

    A difference larger than the bundle allows is a failure; the exit code is then 18. Each model runs in its own process, with limited
    time and at most 2 GiB of memory, so a model that crashes or hangs its engine is a failure too.

    \b
    Examples:
      edgecnn selftest
      edgecnn selftest --model cats.edgecnn --engine litert --json
    """
    from edgecnn.bundle.file import read_bundle
    from edgecnn.device.slots.default import default_bundle
    from edgecnn.runtime.selftest import require_pass
    from edgecnn.runtime.selftest import selftest as run_selftest

    choice = default_bundle(model)
    bundle = read_bundle(choice.path)
    note(f"{choice.path} ({choice.reason}), SHA-256 {bundle.sha256[:12]}")
    report = run_selftest(bundle, engine, threads, apart=True, limit_s=limit)
    if json:
        checked = {name: [row._asdict() for row in getattr(report, name)] for name in ("layers", "rows")}
        emit_json({"bundle": str(choice.path), "sha256": bundle.sha256, "passed": report.passed, **checked})
    else:
        for layer in report.layers:
            verdict = "passed" if layer.passed else "FAILED"
            print(f"{verdict:7} {layer.layer}: {layer.images} images, {len(layer.differing)} differ (0 allowed)")
        for row in report.rows:
            print(printable(selftest_line(row)))
    require_pass(report)


def selftest_line(row: "SelftestRow") -> str:
    verdict = {True: "passed", False: "FAILED", None: "-"}[row.passed]
    where = f" on {row.engine}" if row.engine else ""
    where += f" {row.version} ({row.provider})" if row.version else ""
    if row.note:
        return f"{verdict:7} {row.model}{where}: {row.note}"
    return (
        f"{verdict:7} {row.model}{where}: {row.images} images, largest difference {row.largest_difference:.3g} {row.unit} "
        f"({row.allowed:.3g} allowed), top-1 changes {row.top1_changes}"
    )
