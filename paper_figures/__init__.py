"""One module a figure of docs/statements: `python -m paper_figures.NAME` reads experiments/results, writes docs/figures."""
