"""The judges: do the exported models answer like the float model? They choose nothing, and use both wings, export and runtime."""

from edgecnn.verify.parity_report import MAX_DROP, Gate, require_parity

__all__ = ["MAX_DROP", "Gate", "require_parity"]
