"""The part of an error message that helps with an unknown name."""

import difflib
from collections.abc import Iterable

_MOST = 40
"""Number of names up to which a message lists them all."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known names closest to ``name``, then all of them.

    ``"; nearest: snip (all: dense, random, snip)"``. The first part is left out where no name is
    close. Of more than 40 names, the second part gives the first three and the number.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    if len(names) > _MOST:
        return f"{hint} (known are {', '.join(names[:3])}, ...: {len(names)} names)"
    return f"{hint} (all: {', '.join(names) or 'none'})"
