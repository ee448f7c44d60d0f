"""What a repository offers, and how long it is valid."""

from datetime import datetime
from typing import Any

from edgecnn.device.update.channel import DATE, entries_of
from edgecnn.files import sha256_file
from edgecnn.labels import plural
from edgecnn.release.keys import name_of
from edgecnn.release.repository import Repository, State, utc_now
from edgecnn.tables import to_json

SCHEMA = "edgecnn.release/1"

SOON_DAYS = {"root": 90, "targets": 30, "snapshot": 7, "timestamp": 7}
"""Days before a role's metadata expires from which that is a problem."""


def status(repository: Repository, anchor: bytes | None = None) -> dict[str, Any]:
    """Return what a repository offers, as JSON: roles with their keys and expiry, channels with their releases, and problems as text.

    ReleaseError if it is not a repository, a signature in it is not valid, or it does not follow from the root metadata `anchor`.
    """
    state, now = repository.read(anchor), utc_now()
    channels = sorted({path.partition("/")[0] for path in state.targets.signed.targets})
    releases = {channel: entries_of(state.targets.signed.targets, channel) for channel in channels}
    problems = [text for role in state.root.roles if (text := _expiry(state, role, now))]
    for entry in [entry for entries in releases.values() for entry in entries]:
        file = repository.target_file(entry.path, entry.sha256)
        if not file.is_file() or sha256_file(file) != entry.sha256:
            problems.append(f"{file} is missing or damaged: put the bundle there again")
    return {
        "schema": SCHEMA,
        "folder": str(repository.folder),
        "signed": state.timestamp.signed.unrecognized_fields.get(DATE),
        "roles": {role: _role(state, role) for role in state.root.roles},
        "channels": {
            channel: [
                {
                    "name": entry.name,
                    "sha256": entry.sha256,
                    "length": entry.length,
                    **{field: to_json(value) for field, value in vars(entry.terms).items()},
                }
                for entry in entries
            ]
            for channel, entries in releases.items()
        },
        "problems": problems,
    }


def _role(state: State, role: str) -> dict[str, Any]:
    signed, known = _signed(state, role), state.root.roles[role]
    return {
        "version": signed.version,
        "expires": signed.expires.isoformat().replace("+00:00", "Z"),
        "threshold": known.threshold,
        "keys": [name_of(state.root.keys[keyid]) for keyid in known.keyids],
    }


def _expiry(state: State, role: str, now: datetime) -> str:
    """Return a line if a role's metadata has expired or soon will, with what to do; "" otherwise."""
    expires = _signed(state, role).expires
    days = (expires - now).days
    if days > SOON_DAYS[role]:
        return ""
    command = "edgecnn release refresh" + (f" {role}" if role in ("root", "targets") else "")
    if expires <= now:
        return f"{role} expired on {expires:%Y-%m-%d}: boards keep what they have and take nothing new. Now: {command}"
    return f"{role} expires in {plural(days, 'day')}, on {expires:%Y-%m-%d}: {command}"


def _signed(state: State, role: str) -> Any:
    return state.root if role == "root" else getattr(state, role).signed
