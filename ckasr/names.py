"""The end of an error message about an unknown name."""

import difflib
from collections.abc import Iterable

_MOST = 40
"""Largest number of names that a message lists in full."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known names most similar to ``name``, then all names.

    An example is ``"; nearest: snip (all: dense, random, snip)"``. The first part is omitted if no
    name is similar. If there are more than 40 names, the second part gives the first three names
    and the number of names.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    if len(names) > _MOST:
        return f"{hint} (known are {', '.join(names[:3])}, ...: {len(names)} names)"
    return f"{hint} (all: {', '.join(names) or 'none'})"
