"""A child program of edgecnn answers with one JSON object, whatever else its process prints."""

import subprocess
import sys

import pytest

from edgecnn.errors import BundleError
from edgecnn.runtime.child import Finished

HEAD = "import os\nfrom edgecnn.errors import BundleError\nfrom edgecnn.runtime.child import run_program\n"


@pytest.mark.parametrize(
    ("body", "code", "table"),
    [
        ("print('loud')\n    os.write(1, b'engine')\n    return {'a': 1}", 0, {"a": 1}),
        ("print('loud')\n    raise BundleError('no\\nbundle')", BundleError.exit_code, {"error": "no\nbundle"}),
    ],
)
def test_the_object_is_alone_on_standard_output(body, code, table):
    program = f"{HEAD}def work():\n    {body}\nrun_program(work)\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    ended = Finished(done.returncode, done.stdout, done.stderr)
    assert (ended.code, ended.table) == (code, table) and "loud" in ended.err


def test_a_failure_reports_the_programs_error_or_the_last_line():
    assert Finished(15, '{"error": "no bundle"}', "a warning").failure == "exit code 15: no bundle"
    assert Finished(1, "", "Traceback\nImportError: no numpy\n\n").failure == "exit code 1: ImportError: no numpy"
    assert Finished(-9, "", "").failure == "killed (SIGKILL)"
