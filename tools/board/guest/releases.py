"""On the board, as its first process: change releases endlessly until the power is cut.

It begins like the service at its start, and reports on the console which release answers. Then it prints a line before each change. It
never runs a model, so no engine is needed.
"""

import itertools
import os
from pathlib import Path
from types import SimpleNamespace

from edgecnn.device.slots import record, store
from edgecnn.device.slots.store import approve, choose_for_start

BUNDLES = Path("/opt/project/bundles")


def say(text: str) -> None:
    """Write a line on the console."""
    os.write(1, f"\nreleases: {text}\n".encode())


def main() -> None:
    """See the module's docstring."""
    vars(store)["choose_model"] = lambda manifest: SimpleNamespace(model=manifest.models[0])
    releases = store.Store(Path("/var/lib/edgecnn"))
    choice = choose_for_start(releases)
    slots = releases.read()
    lacking = [about.name for release, about in slots.releases.items() if not releases.whole(release)]
    say(f"start {choice.name or 'none'} problems {len(choice.problems)} lacking {len(lacking)}")
    for path in itertools.cycle(sorted(BUNDLES.iterdir())):
        say("add")
        release, _ = releases.add(path)
        say("activate")
        releases.activate(release, store.Use(accept="a test"))
        say("choose")
        choose_for_start(releases)
        say("approve")
        approve(releases, release)
        say("prune")
        releases.prune(1)
        say("rollback")
        releases.change(record.rolled_back)
        say("activate")
        releases.activate(release)


if __name__ == "__main__":
    main()
