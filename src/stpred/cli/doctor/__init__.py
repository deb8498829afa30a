"""``stpred doctor``: what is installed, whether it works, and what could be added."""
