"""``python -m ckasr``: the command line, from a plain checkout or an installed package."""

from ckasr.cli import main

if __name__ == "__main__":
    main()
