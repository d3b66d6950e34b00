# All targets first install what is missing (Debian, as root; see CONTRIBUTING.md).
PYTHON ?= python3
ARGS ?=

.PHONY: demo serve test data-small train-small evaluate-small clean

# Freedoom in a small window, the overlay over it; results in demo-out/.
demo:
	@$(PYTHON) tools/bootstrap.py demo
	@.venv/bin/python -m overlay demo $(ARGS)

# The service and its page, at http://127.0.0.1:8501, until Ctrl-C.
serve:
	@$(PYTHON) tools/bootstrap.py serve
	@.venv/bin/python -m service.both $(ARGS)

# Format, lint, types, tests. `make test ARGS=--fast` leaves the games out.
test:
	@$(PYTHON) tools/bootstrap.py test
	@.venv/bin/python check.py $(ARGS)

# The whole way of a net, in minutes: frames, training, quality beside bicubic. docs/training.md
data-small:
	@$(PYTHON) tools/bootstrap.py train
	@.venv/bin/python -m overlay data collect --small --out data/small

train-small: data-small
	@.venv/bin/python -m training.train training/configs/small.toml $(ARGS)

evaluate-small:
	@$(PYTHON) tools/bootstrap.py train
	@.venv/bin/python -m evaluation.evaluate --data data/small --split test --low 270 --high 540 \
	  --models data/runs/small-x2/small-x2.safetensors,default-x2 --metrics psnr,psnr-y,ssim,haarpsi \
	  --crop 8 --json data/runs/small-x2/quality.json

clean:
	rm -rf demo-out build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
