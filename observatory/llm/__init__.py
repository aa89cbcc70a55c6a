"""What an LLM call is, and what becomes of its answer."""

from .answers import AnswerCache, Answers
from .call import CallData, Calls, Usage
from .catalogue import Catalogue
from .collecting import Call
from .desk import Desk
from .gate import Gate
from .llm import LLM
from .prices import Prices
from .retries import Retries

__all__ = [
    "LLM",
    "AnswerCache",
    "Answers",
    "Call",
    "CallData",
    "Calls",
    "Catalogue",
    "Desk",
    "Gate",
    "Prices",
    "Retries",
    "Usage",
]
