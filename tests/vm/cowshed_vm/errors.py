"""What the harness itself can fail with: one line each. A test that fails in the guest is no error of the harness."""

from __future__ import annotations


class VmError(Exception):
    """What failed, on what, why, and what to do about it."""


class NotHere(VmError):
    """This machine cannot do it: wrong architecture, not root, packages or space missing."""


class GuestDied(VmError):
    """The guest ended without a report: it panicked, or QEMU did not start."""
