# Both targets first install what is missing (Debian, as root; see CONTRIBUTING.md).
PYTHON ?= python3
ARGS ?=

.PHONY: demo test clean

# Freedoom in a small window, the overlay over it; results in demo-out/.
demo:
	@$(PYTHON) tools/bootstrap.py demo
	@.venv/bin/python -m overlay demo $(ARGS)

# Format, lint, types, tests. `make test ARGS=--fast` leaves the games out.
test:
	@$(PYTHON) tools/bootstrap.py test
	@.venv/bin/python check.py $(ARGS)

clean:
	rm -rf demo-out build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
