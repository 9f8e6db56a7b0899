# Six verbs, and a few for special occasions. VENV chooses the virtual environment.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: setup build check format test bench serve parity sanitize avx512 fuzz browser pictures train-nano

setup: $(BIN)/python  ## a virtual environment with everything but PyTorch
	$(BIN)/pip install -q -e '.[test,dev]'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

build: setup  ## compile the native core again, warnings as errors
	$(BIN)/pip install -q --no-build-isolation -C cmake.define.DEEPFAST_WERROR=ON -e .

check: setup  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup  ## let the formatter have its way
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: setup  ## the suite that needs no PyTorch
	$(BIN)/python -m pytest -q

parity: setup  ## against transformers, on the CPU
	$(BIN)/pip install -q -e '.[test,parity]'
	$(BIN)/python -m pytest -q tests/parity

bench: setup  ## prompt and generation speed of the bundled model
	$(BIN)/deepfast bench

sanitize: setup  ## kernel tests under AddressSanitizer and UBSan
	bash tests/sanitize.sh $(BIN)/python

avx512: setup  ## kernel tests of the AVX-512 path, emulated where the machine lacks it
	bash tests/emulate_avx512.sh $(BIN)/python

FUZZ_EXAMPLES ?= 2000

fuzz: setup  ## the readers of model files against damaged ones: FUZZ_EXAMPLES of each kind
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -q tests/fuzz

train-nano: setup  ## a small hybrid thinker, from nothing to its card: the stages of docs/training.md
	$(BIN)/pip install -q -e '.[train]'
	$(BIN)/python recipes/train_nano.py --preset mini

serve: setup  ## the APIs and the chat page on http://127.0.0.1:8000, with the bundled model
	$(BIN)/deepfast serve

CHROMIUM := $(or $(shell command -v chromium),$(shell command -v google-chrome))

browser: setup  ## the chat page in headless Chromium, which is installed on Debian where it is missing
ifeq ($(CHROMIUM),)
	@test "$$(id -u)" = 0 || { echo "Chromium is missing. Run: sudo apt-get install -y chromium" >&2; exit 1; }
	apt-get update -q && apt-get install -qy --no-install-recommends chromium
endif
	$(BIN)/pip install -q -e '.[test,browser]'
	$(BIN)/python -m pytest -q tests/browser

pictures: setup  ## the documentation's pictures of the page
	$(BIN)/pip install -q -e '.[test,browser]'
	$(BIN)/python tests/browser/screenshots.py
