# make verify : check every statement on the built-in problems and on real data; report in reports/verify
# make test   : style, types and the tests that are not slow
# Both make .venv and install what they need, once.

PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready

.PHONY: verify test slow clean

verify: $(READY)
	$(BIN)/sdecontrol verify --out reports/verify

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy sdecontrol
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile -m "not slow"

slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m slow

$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $(READY)

clean:
	rm -rf .venv reports .pytest_cache .mypy_cache .ruff_cache
