"""`edgecnn layers`."""

from edgecnn.cli.options import Json, emit_json, note, terminal_width
from edgecnn.cli.workstation_options import RunArgument


def layers(run: RunArgument = None, json: Json = False) -> None:
    """Show where int8 departs from float, layer by layer.

    Compares a run's int8 TFLite file with its float model on validation images. For each layer, worst first: the
    signal-to-quantization-noise ratio in dB, the share of saturated values, the largest channel range over the median one, and what
    usually fixes it. The figures are kept in the run as layers.json, for `edgecnn report`.

    \b
    Examples:
      edgecnn layers
      edgecnn layers runs/digits --json
    """
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.runs import open_run

    opened = open_run(run)
    note(f"run {opened.path}")
    with ProgressReporter() as reporter:
        from edgecnn.data import open_run_dataset
        from edgecnn.report.table import text_table
        from edgecnn.runs import LAYERS, write_json
        from edgecnn.verify.layers import layer_errors, measured_split

        dataset = open_run_dataset(opened, progress=reporter.working, note=reporter.note)
        result = layer_errors(opened, dataset, reporter.working)
    write_json(opened.file(LAYERS), result)
    if json:
        emit_json(result)
        return
    which = {"train": "training"}.get(split := measured_split(opened), split)
    print(f"signal to quantization noise on {result.images:,} {which} images, worst first")
    rows = [
        (item.layer, f"{item.sqnr_db:.1f}", f"{item.saturated:.2%}", f"{item.channel_ratio:.1f}", item.hint)
        for item in result.layers
    ]
    print(text_table(("layer", "dB", "saturated", "channel ratio", "what usually fixes it"), rows, terminal_width()))
    if result.unmatched:
        print(f"not matched: {', '.join(result.unmatched)}")
