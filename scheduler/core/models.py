"""When two names of a GPU model are the same, and globs on them. Pure.

NVML says `NVIDIA A100-SXM4-80GB`, and GPU feature discovery's label, which can have no blank, `NVIDIA-A100-SXM4-80GB`:
what a pod asks for must not change its meaning when an agent comes. So blank, `-` and `_` are the same sign, and small
and large letters too. People are shown a name as it was told.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache

_SAME = str.maketrans("-_", "  ")
# As fnmatch reads it: the first sign within, behind a !, is never its end.
_BRACKET = re.compile(r"\[(!?+)\]?+[^\]]*+\]")
_PRINTABLE = [chr(code) for code in range(32, 127)]


def folded(name: str) -> str:
    """A model's name, so that the same ones are equal."""
    return name.lower().translate(_SAME)


# Pods of one cluster ask by a handful; annotations may say anything, so there is an end to it.
@lru_cache(maxsize=1024)
def folded_glob(glob: str) -> str:
    """A glob that matches, of folded names, those that the given one means."""
    if "[" not in glob:
        return folded(glob)
    parts, end = [], 0
    for found in _BRACKET.finditer(glob):
        parts += [folded(glob[end : found.start()]), _folded_bracket(found[0], found[1])]
        end = found.end()
    return "".join([*parts, folded(glob[end:])])


def _folded_bracket(bracket: str, negation: str) -> str:
    # Sign by sign: a - may be a range's or stand for itself, and folding the ends of [A-z] is another range.
    members = {folded(sign) for sign in _PRINTABLE if fnmatchcase(sign, bracket) != bool(negation)}
    if members == {"!"}:
        return "[!!]" if negation else "!"
    # Where they cannot be taken for an end or a negation. A range without signs stays without.
    ordered = sorted(members, key=lambda sign: (sign != "]", sign == "!", sign))
    return f"[{negation}{''.join(ordered)}]" if members else f"[{negation}1-0]"


def matches(name: str, glob: str) -> bool:
    """Whether a glob means a model."""
    return fnmatchcase(folded(name), folded_glob(glob))
