"""``python -m cnorm``: the configuration, a check of this machine, a benchmark."""

from cnorm._cli import main

if __name__ == "__main__":
    raise SystemExit(main())
