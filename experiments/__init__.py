"""One module a table of docs/statements: `python -m experiments.NAME` writes experiments/results/NAME.json."""
