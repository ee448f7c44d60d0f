"""Makes mutants in the virtual environment of cosmic-ray, since starting its command for each of them would take longer than the tests.

Reads one JSON list per line: a module's text, the operator and the occurrence. Writes the changed text as JSON, or null if 8.7.0 cannot
make the mutant: it fails to replace an exception of a module if it is in parentheses.
"""

import json
import sys

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator


def changed(text: str, operator: str, occurrence: int) -> str | None:
    try:
        return mutate_code(text, get_operator(operator)(), occurrence)
    except (AssertionError, AttributeError, IndexError, TypeError):
        return None


for line in sys.stdin:
    print(json.dumps(changed(*json.loads(line))), flush=True)
