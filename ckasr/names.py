"""What an error message says about a name that is not known."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown name: the known names closest to it, and all of them.

    ``"; nearest: snip (all: dense, random, snip)"``, without the first part where no name is close.
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    return f"{hint} (all: {', '.join(names) or 'none'})"
