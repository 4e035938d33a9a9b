"""`python -m sdecontrol.cli`: the command line."""

from sdecontrol.cli import main

if __name__ == "__main__":
    main()
