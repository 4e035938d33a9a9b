"""One module a figure of docs/statements: `python -m paper_figures.NAME`, from experiments/results to docs/figures."""
