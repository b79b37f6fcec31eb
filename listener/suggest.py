"""Suggestions for unknown names."""

from collections.abc import Iterable
from difflib import get_close_matches

_FEW = 12


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a suffix for an error about an unknown `word`: the closest of `known`, or all of them if at most 12."""
    names = sorted(known)
    by_lower = {name.lower(): name for name in names}
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if near:
        return f', did you mean "{by_lower[near[0]]}"?'
    if 0 < len(names) <= _FEW:
        return "; known: " + ", ".join(names)
    return ""
