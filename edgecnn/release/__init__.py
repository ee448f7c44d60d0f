"""Releases on the workstation: a folder of signed files that any web server, bucket or stick can hand to boards.

The metadata is that of The Update Framework (TUF), signed by python-tuf and cryptography; no code here computes or compares a signature.
"""
