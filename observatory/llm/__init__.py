"""What an LLM call is, and what becomes of its answer."""

from .answers import AnswerCache, Answers
from .call import CallData, Calls, Usage
from .catalogue import Catalogue
from .collecting import Call
from .desk import Desk
from .fallback import Fallback
from .gate import Gate
from .guarded import GuardedCall
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
    "Fallback",
    "Gate",
    "GuardedCall",
    "Prices",
    "Retries",
    "Usage",
]
