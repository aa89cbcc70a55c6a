"""Observatory: a fleet of asyncio LLM applications acts as one, through the Redis it already has."""

from .client import Observatory
from .costs import Budget, CostReport, CostRow, Costs, ModelPrice, WhatIf
from .errors import (
    AnswerInterrupted,
    BudgetExceeded,
    CacheComputationFailed,
    CacheError,
    CacheMiss,
    CircuitOpen,
    ConfigurationError,
    CoolingDown,
    InvalidArgument,
    NotEncodable,
    NotFound,
    NotOpen,
    ObservatoryError,
    PayloadTooLarge,
    RateLimitExceeded,
    ReservationLost,
    RetryBudgetExceeded,
    StoreError,
    StoreMisconfigured,
    StoreUnavailable,
    UnknownLimit,
    ValueTooLarge,
)
from .features.breaker import Breaker, BreakerReport, Pauses
from .features.cache import Cache, CacheStats
from .features.metrics import Counter, Gauge, Histogram, Metrics
from .features.rate_limiter import Decision, Limit, Override, RateLimiter, Reservation, Settlement
from .features.retry import Retry, RetryDetails
from .llm import LLM, AnswerCache, Call, Prices, Usage
from .logs import Logger
from .names import Metric
from .settings import Price, Settings
from .store.check import Health
from .version import __version__

__all__ = [
    "LLM",
    "AnswerCache",
    "AnswerInterrupted",
    "Breaker",
    "BreakerReport",
    "Budget",
    "BudgetExceeded",
    "Cache",
    "CacheComputationFailed",
    "CacheError",
    "CacheMiss",
    "CacheStats",
    "Call",
    "CircuitOpen",
    "ConfigurationError",
    "CoolingDown",
    "CostReport",
    "CostRow",
    "Costs",
    "Counter",
    "Decision",
    "Gauge",
    "Health",
    "Histogram",
    "InvalidArgument",
    "Limit",
    "Logger",
    "Metric",
    "Metrics",
    "ModelPrice",
    "NotEncodable",
    "NotFound",
    "NotOpen",
    "Observatory",
    "ObservatoryError",
    "Override",
    "Pauses",
    "PayloadTooLarge",
    "Price",
    "Prices",
    "RateLimitExceeded",
    "RateLimiter",
    "Reservation",
    "ReservationLost",
    "Retry",
    "RetryBudgetExceeded",
    "RetryDetails",
    "Settings",
    "Settlement",
    "StoreError",
    "StoreMisconfigured",
    "StoreUnavailable",
    "UnknownLimit",
    "Usage",
    "ValueTooLarge",
    "WhatIf",
    "__version__",
]
