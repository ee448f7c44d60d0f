"""Verification: do the exported models answer as the float model does?"""

from edgecnn.verify.gate import MAX_DROP, Gate, require_parity
from edgecnn.verify.parity import verify

__all__ = ["MAX_DROP", "Gate", "require_parity", "verify"]
