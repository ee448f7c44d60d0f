"""Read the lines of `edgecnn classify --json` and print each change of state, and when a camera is lost or back."""

import json
import sys

for line in sys.stdin:
    event = json.loads(line)
    if event.get("event") == "state_changed":
        print(f"{event['ts']}  {event['previous']} -> {event['state']}", flush=True)
    elif event.get("event") in ("camera_lost", "camera_back", "ended"):
        print(f"{event['ts']}  {event['event']}", flush=True)
