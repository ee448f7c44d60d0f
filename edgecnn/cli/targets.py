"""`edgecnn targets`."""

from edgecnn.cli.options import Json, emit_json


def targets(json: Json = False) -> None:
    """List the boards that edgecnn knows.

    \b
    Example:
      edgecnn targets --json
    """
    from edgecnn.boards import list_targets

    known = list_targets()
    if json:
        emit_json({target.name: target for target in known})
        return
    for target in known:
        memory = f"{target.memory_mib:,} MiB" if target.memory_mib else "-"
        print(f"{target.name:18} {target.title:32} {target.arch:8} {target.cpu_model:14} {target.engine:12} {memory}")
