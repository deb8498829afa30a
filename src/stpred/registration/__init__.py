"""Sides of a registration from the elements of an object, and what came of it."""

from stpred.registration.fixed import read_fixed
from stpred.registration.images import read_he, read_unplaced_he
from stpred.registration.placed import Placed
from stpred.registration.result import Registration, note_key, read_note

__all__ = ["Placed", "Registration", "note_key", "read_fixed", "read_he", "read_note", "read_unplaced_he"]
