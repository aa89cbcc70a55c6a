"""What a sandbox fails a test with: errors of ours that are AssertionErrors, so that every runner calls them failures."""

from ..errors import ObservatoryError


class SandboxError(ObservatoryError, AssertionError):
    """The test, or the code under it, did what it must not."""

    code = "sandbox"
    title = "The sandbox does not allow this"


class UnexpectedCall(SandboxError):
    """A provider was called, and nobody answers for it."""

    code = "unexpected_call"
    title = "A provider was called that nobody answers for"


class TimeStandsStill(SandboxError):
    """Something waits for a clock that nobody moves."""

    code = "time_stands_still"
    title = "Time stands still, and a call waits for it"


class LeakedKeys(SandboxError):
    """Keys without a TTL were left behind."""

    code = "leaked_keys"
    title = "Keys without a TTL were left behind"
