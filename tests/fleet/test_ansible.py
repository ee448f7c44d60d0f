"""The Ansible role, in real Ansible, on the ssh servers of test_deploy.py. Ansible has its own environment."""

import json
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("sshd", "sudo", "unshare", package="openssh-server sudo"),
]


@pytest.fixture
def ansible(root, monkeypatch, tmp_path):
    """Run one of Ansible's programs; return its process, which has ended."""
    programs = root / ".venv-ansible" / "bin"
    if not (programs / "ansible-playbook").exists():
        pytest.skip("no virtual environment .venv-ansible, of 90 MB: make test-ansible makes it")
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("ANSIBLE_HOME", str(tmp_path / "ansible"))
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK", "ansible.builtin.default")

    def run(program, *arguments):
        return subprocess.run([programs / program, *map(str, arguments)], capture_output=True, text=True)

    return run


def test_ansible_lint_finds_nothing(ansible, root, monkeypatch):
    monkeypatch.chdir(root / "deploy")
    done = ansible("ansible-lint", "--offline", "--strict", "--profile=production")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_role_does_what_deploy_does(ansible, boards, release, root, tmp_path):
    release("photos", 1)
    for name in ("door", "gate", "barn", "shed", "yard"):
        boards.make(name, user="pi" if name == "gate" else "root", size="60m" if name == "barn" else "300m")
    boards.off("shed")
    boards.new_key("shed")
    boards.on("shed")
    boards.off("yard")

    def play(*hosts):
        (tmp_path / "inventory.ini").write_text("\n".join(["[boards]", *hosts]))
        values = {"edgecnn_command": [sys.executable, "-m", "edgecnn"], "edgecnn_repo": str(tmp_path / "releases")}
        line = ["-i", tmp_path / "inventory.ini", root / "deploy" / "boards.yml", "-e", json.dumps(values)]
        return ansible("ansible-playbook", *line)

    first = play("door", "gate", "barn", "shed", "yard")
    well, failed = (3, 1, 0), (2, 0, 1)
    assert recap(first.stdout) == {"door": well, "gate": well, "barn": failed, "shed": failed, "yard": failed}, (
        first.stdout
    )
    for words in (
        "its disk is full",
        "its host key is not the one in",
        "no ssh server answers there",
        "photos serial 1 is in use",
    ):
        assert words in first.stdout, first.stdout
    assert first.returncode != 0
    for name in ("door", "gate"):
        boards.counted(name)
    again = play("door", "gate")
    assert recap(again.stdout) == {"door": (3, 0, 0), "gate": (3, 0, 0)} and again.returncode == 0, again.stdout
    assert max(boards.counted(name) for name in ("door", "gate")) < 20_000


def recap(text):
    """Return how many tasks were ok, changed and failed on each host."""
    counts = {}
    for line in text.partition("PLAY RECAP")[2].splitlines()[1:]:
        name, _, rest = line.partition(" : ")
        if rest:
            fields = dict(field.split("=") for field in rest.split())
            counts[name.strip()] = tuple(int(fields[key]) for key in ("ok", "changed", "failed"))
    return counts
