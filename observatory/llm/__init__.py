"""What an LLM call is, and what becomes of its answer."""

from .answers import AnswerCache
from .call import CallData, Calls, Usage
from .catalogue import Catalogue
from .collecting import Call
from .exchange import Desk
from .llm import LLM
from .prices import Prices

__all__ = ["LLM", "AnswerCache", "Call", "CallData", "Calls", "Catalogue", "Desk", "Prices", "Usage"]
