"""Answers of LLM providers, kept for the fleet, and shared while they come."""

from .answers import AnswerCache, Answers, Reply
from .canonical import Request
from .question import Upstream
from .refusals import Reason

__all__ = ["AnswerCache", "Answers", "Reason", "Reply", "Request", "Upstream"]
