"""Print a parity report, for the commands that make or read one."""

from typing import TYPE_CHECKING

from edgecnn.cli.console import emit_json, note, terminal_width

if TYPE_CHECKING:
    from edgecnn.verify.against import Against
    from edgecnn.verify.parity_report import Report


def show_report(report: "Report", json: bool, full: bool = False) -> None:
    if json:
        emit_json(report)
        note_warnings(report)
    else:
        print_report(report, full)


def print_report(report: "Report", full: bool = False) -> None:
    """Print what decides the next command, or with `full` all figures."""
    from edgecnn.report import table
    from edgecnn.verify.gate import gate_line

    width = terminal_width()
    lines = [f"{table.images_line(report.data)}{f'; {report.timing}' if full else ''}", *table.range_lines(report)]
    lines += table.taught_lines(report)
    lines += table.class_lines(report, full)
    if full:
        lines += [
            *table.fold_lines(report),
            table.text_table(table.HEADINGS, table.parity_rows(report), width),
            table.text_table(table.COMPARISON_HEADINGS, table.comparison_rows(report), width),
            *table.int8_lines(report),
            *table.conversion_lines(report),
            *table.program_lines(report),
            *table.flip_lines(report),
            *table.score_lines(report),
        ]
    else:
        lines += [*table.model_lines(report), *table.conversion_lines(report, only_failed=True)]
    lines.append(gate_line(report))
    if report.matrix:
        lines.append(f"\n{table.matrix_table(report.matrix, width)}")
    if report.boards:
        lines.append(f"\n{table.text_table(table.BOARD_HEADINGS, table.board_rows(report.boards), width)}")
    print("\n".join([*lines, *table.warning_lines(report)]))


def show_against(against: "Against") -> None:
    from edgecnn.labels import printable
    from edgecnn.verify.against import against_lines

    print("\n".join(map(printable, against_lines(against))))


def note_warnings(report: "Report") -> None:
    from edgecnn.report.table import warning_lines

    for line in warning_lines(report):
        note(line)
