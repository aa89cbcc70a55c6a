"""What passes between a client and a provider: which call a request is, and what a response says of itself."""

from .reader import Reader
from .reading import Reading
from .request import PATHS, Endpoint, Recognised, provider_of, recognise
from .tokens import Tokenizer, approximately

__all__ = ["PATHS", "Endpoint", "Reader", "Reading", "Recognised", "Tokenizer", "approximately", "provider_of", "recognise"]
