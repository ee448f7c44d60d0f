"""`edgecnn service`: refusals and output."""

import os

import pytest

from edgecnn.device.slots.record import NO_RELEASE
from edgecnn.errors import ServiceError


def test_options_are_checked(edgecnn, tmp_path):
    options = tmp_path / "service.toml"
    options.write_text("good_after = 5\n")
    done = edgecnn("service", "check", "--config", options)
    assert done.code == 0 and done.err == f"{options}: valid\n"
    options.write_text("good_afer = 5\n")
    done = edgecnn("service", "check", "--config", options)
    assert done.code == ServiceError.exit_code
    assert done.err.startswith(f"edgecnn: error: {options}: ") and "Did you mean 'good_after'?" in done.err
    assert edgecnn("service", "check", "--config", "none.toml").code == ServiceError.exit_code


@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="systemd runs on this machine")
@pytest.mark.parametrize("action", ["install", "status", "logs", "remove"])
def test_without_systemd(edgecnn, action):
    done = edgecnn("service", action)
    assert done.code == ServiceError.exit_code


def test_an_action_with_a_typo(edgecnn):
    refused = edgecnn("service", "instal")
    assert refused.code == 2
    assert "received 'instal', expected install, check, status, logs, remove, run" in " ".join(refused.err.split())


def test_status_reports_what_runs(edgecnn, monkeypatch, tmp_path):
    from edgecnn.device.service import manage

    shown = {"ActiveState": "active", "SubState": "running", "StatusText": "state: 'cat'", "NRestarts": "0"}
    monkeypatch.setattr(manage, "status", lambda host: {"UnitFileState": "enabled", "Result": "success", **shown})
    done = edgecnn("service", "status", "--slots", tmp_path / "none")
    assert done.out.splitlines() == [
        "service active (running), enabled, restarts 0",
        "status  state: 'cat'",
        NO_RELEASE,
    ]
    assert '"ActiveState": "active"' in edgecnn("service", "status", "--json", "--slots", tmp_path / "none").out
