# make train [ARGS="--kl_type forward"]   set up, then train          make test   set up, then run the tests
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
ARGS ?=

.PHONY: help train test play bug handin clean
# instructors: not in the hand-out
.PHONY: lint soak canary baselines results handout gradescope
# /instructors

help:
	@echo "make train [ARGS=\"...\"]  set up .venv, then python train.py ARGS (a few minutes on a CPU)"
	@echo "make play [ARGS=\"...\"]   set up Gradio too, then python play.py ARGS"
	@echo "make test                set up .venv, then run the tests"
	@echo "make bug N=3             outputs/bugs/3: a copy of the kit with a silent bug in it, for *spot the bug*"
	@echo "make handin RUN=...      dist/handin.zip: what you hand in, with the run of exercise 6 if you name it"
	@echo "make clean               delete .venv, outputs, results and all that was made"
# instructors: not in the hand-out
	@echo "make baselines           the base and five methods side by side, three seeds"
	@echo "make results             every experiment, three seeds: docs/results.md, docs/verdict.md (hours, resumable)"
	@echo "make handout             dist/handout.zip: the kit for students, without answers"
	@echo "make gradescope          dist/gradescope.zip: the autograder"
	@echo "make lint                ruff and mypy"
	@echo "make soak                trainings killed and resumed, hundreds of them: docs/reliability.md"
	@echo "make canary              make test with the newest versions of all packages, in .venv-canary"
# /instructors

# Said here, as pip would say of an older Python that torch conflicts with itself.
VERSION := import sys; sys.exit(sys.version_info < (3, 11) and 'This is Python ' + sys.version.split()[0] + ', and 3.11 \
  or newer is needed: make train PYTHON=python3.12, say')

# Stale when the requirements changed: the marker is older than they are.
.venv/.installed: requirements.txt
	@test -x $(BIN)/python || $(PYTHON) -c "$(VERSION)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the packages of requirements.txt: some minutes without a word, once"
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

train: .venv/.installed
	$(BIN)/python train.py $(ARGS)

.venv/.installed-play: requirements-play.txt .venv/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-play.txt
	touch $@

play: .venv/.installed-play
	$(BIN)/python play.py $(ARGS)

# One thread a worker: two tests that share two cores with two threads each wait for one another, and a thread that waits
# leaves its core to others. A file stays with one worker: what its tests share is made once.
test: .venv/.installed-dev
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

bug: .venv/.installed
	$(BIN)/python -m grading.bug $(N)

handin: .venv/.installed
	$(BIN)/python -m grading.handin $(if $(RUN),--run "$(RUN)") $(ARGS)

# instructors: not in the hand-out
lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: .venv/.installed-dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.soak --write $(ARGS)

# Does the kit still work with the newest versions? They go into an environment of their own, made anew each time.
CANARY := $(BIN:.venv%=.venv-canary%)/python
NAMES = $(shell sed -n 's/==.*//p' requirements.txt requirements-dev.txt)
canary:
	$(PYTHON) -m venv --clear .venv-canary
	$(CANARY) -m pip install -q --disable-pip-version-check $(NAMES)
	@$(CANARY) -m pip list --disable-pip-version-check | grep -iwF $(NAMES:%=-e %)
	KIT_CANARY=1 OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(CANARY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

baselines: .venv/.installed
	$(BIN)/python -m baselines.compare $(ARGS)

results: .venv/.installed
	$(BIN)/python -m benchmarks.results $(ARGS)
	$(BIN)/python -m benchmarks.verdict
	$(BIN)/python -m benchmarks.overoptimization
	$(BIN)/python -m benchmarks.smollm2

handout: .venv/.installed
	$(BIN)/python -m grading.handout $(if $(VARIANT),--variant $(VARIANT)) $(ARGS)

gradescope: .venv/.installed
	$(BIN)/python -m grading.gradescope.build $(ARGS)
# /instructors

clean:
	rm -rf .venv .venv-canary outputs results dist wandb .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
