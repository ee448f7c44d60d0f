"""Verification: do the exported models answer as the float model does? This room uses both wings, export and runtime.

What has to run an exported file on the workstation is here: parity, comparisons, golden vectors, the timing of exports and the answers of
int8 files that training chooses by.
"""

from edgecnn.verify.gate import MAX_DROP, Gate, require_parity
from edgecnn.verify.parity import verify

__all__ = ["MAX_DROP", "Gate", "require_parity", "verify"]
