"""What an LLM call is, and what becomes of its answer."""

from .answers import AnswerCache
from .call import CallData, Calls, Usage

__all__ = ["AnswerCache", "CallData", "Calls", "Usage"]
