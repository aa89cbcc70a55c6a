"""What a sandbox fails a test with: errors of ours that are AssertionErrors, so that every runner calls them failures."""

from ..errors import ObservatoryError


class SandboxError(ObservatoryError, AssertionError):
    """The test, or the code under it, did what it must not."""

    code = "sandbox"
    title = "The sandbox does not allow this"


class UnexpectedCall(SandboxError):
    """A provider was called, and nobody answers for it."""


class TimeStandsStill(SandboxError):
    """Something waits for a clock that nobody moves."""


class LeakedKeys(SandboxError):
    """Keys without a TTL were left behind."""
