"""Answers to words that are not known."""

from collections.abc import Iterable
from difflib import get_close_matches

_FEW = 12


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown `word`: the nearest of `known`, else all of them if they are few."""
    names = sorted(known)
    by_lower = {name.lower(): name for name in names}
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if near:
        return f', did you mean "{by_lower[near[0]]}"?'
    if 0 < len(names) <= _FEW:
        return "; known: " + ", ".join(names)
    return ""
