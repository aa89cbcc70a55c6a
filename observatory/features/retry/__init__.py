"""Trying again: a policy, its attempts, and the budget that the whole fleet retries from."""

from .attempts import Attempt, RetryDetails
from .budget import RetryBudget
from .policy import Retry, retryable

__all__ = ["Attempt", "Retry", "RetryBudget", "RetryDetails", "retryable"]
