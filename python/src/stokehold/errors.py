"""What can go wrong, one class per decision that a caller makes."""

from __future__ import annotations


class StokeholdError(Exception):
    """Anything that this package raises on purpose."""


class ProtocolError(StokeholdError):
    """The host sent what docs/WORKER-PROTOCOL.md does not allow. The connection is over."""


class SealsError(ProtocolError):
    """A descriptor is not the sealed memfd that it has to be, so it is not mapped."""


class HostGoneError(StokeholdError):
    """The connection ended while something was still wanted from the host."""


class Cancelled(StokeholdError):  # noqa: N818 (an order, not a fault)
    """The host wants the stage to end now. Let it pass, after tidying up if need be."""


class PermanentError(StokeholdError):
    """Raise it from a stage to say that running the stage again would fail again."""


class KeptBatchesError(StokeholdError):
    """The stage kept memory of the host's beyond what it may: copy what is to be kept."""
