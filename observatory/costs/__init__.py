"""What calls have cost, what they would have cost, and how far budgets are spent."""

from .budgets import Budget
from .costs import Costs
from .pricing import ModelPrice, WhatIf
from .report import CostReport, CostRow

__all__ = ["Budget", "CostReport", "CostRow", "Costs", "ModelPrice", "WhatIf"]
