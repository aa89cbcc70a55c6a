"""What an LLM call is."""

from .call import CallData, Calls, Usage

__all__ = ["CallData", "Calls", "Usage"]
