"""Verification: do the exported models answer as the float model does?"""

from edgecnn.verify.verify import MAX_DROP, require_parity, verify

__all__ = ["MAX_DROP", "require_parity", "verify"]
