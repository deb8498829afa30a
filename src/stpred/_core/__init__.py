"""Names, checks, specs, tables and settings that every other part of stpred relies on (rank 0)."""
