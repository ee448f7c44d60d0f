"""Emulated boards: system roots, wheels, QEMU, and bundles run on them."""
