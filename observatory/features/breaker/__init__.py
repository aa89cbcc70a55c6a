"""Circuit breakers and pauses that the fleet shares: what fails is left alone, and tried by one."""

from .breaker import Breaker
from .breakers import BreakerReport, Breakers
from .pauses import Pauses

__all__ = ["Breaker", "BreakerReport", "Breakers", "Pauses"]
