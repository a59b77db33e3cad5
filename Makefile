# Short names for the project's commands. `make help` lists them.

# Was PYTHON asked for, or is it the default? Only then is an environment of another version remade.
PYTHON_GIVEN := $(if $(filter undefined,$(origin PYTHON)),,--python-given)
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
ARGS ?=
# As in pandalib/__init__.py: two processes on the same cores do not slow each other tenfold.
export GOMP_SPINCOUNT ?= 1000

# Quoted throughout: the folders may have spaces in their names.
RUN = "$(VENV)/bin/python"
# The settings: no pop-up that asks about news and updates, and (custom.css) no lines of 180 characters. The address in place of the file's name:
# then it is also the one that --no-browser prints.
LAB = $(RUN) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" \
	--LabApp.app_settings_dir="$(CURDIR)/tools/lab_settings" \
	--custom-css --ServerApp.static_custom_path="$(CURDIR)/tools/lab_settings" \
	--LabApp.default_url=/lab/tree
# Of a run of all tests: a file at a time on each core, with one thread, and coverage, which some tests alone would not reach.
ALL = $(if $(ARGS),,-n logical --maxprocesses 4 --dist loadfile --cov=pandalib --cov-report=term --cov-fail-under=95)
# Jupyter refuses to run as root, as in a container, unless told so.
AS_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help install lab teach test test-fast mutate notebooks student nbgrader book slides results bench doctor lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  VENV=.venv          the virtual environment (now: $(VENV))'
	@echo '  PYTHON=python3      the Python it is made with, 3.11 or newer (now: $(PYTHON))'
	@echo '  TORCH_INDEX=        where torch comes from, an address or a folder of wheels; remembered until `make clean`.'
	@echo '                      Left out: PyTorch'"'"'s index of CPU wheels where there is no NVIDIA driver, else the usual one'
	@echo '  ARGS=               more arguments for lab, teach, test, test-fast, mutate, notebooks, student, book, slides, results, bench, doctor, lock:'
	@echo '                      make lab ARGS="--no-browser --port 8899"'

install: ## build the virtual environment from requirements.lock; quick when nothing has changed
	@"$(PYTHON)" tools/install.py --venv "$(VENV)" --torch-index "$(TORCH_INDEX)" $(PYTHON_GIVEN)

lab: install ## install, then open your copy of the lessons, in my/, in JupyterLab
	@$(RUN) tools/student.py --my
	$(LAB)/my/00_start_here.ipynb $(AS_ROOT) $(ARGS)

teach: install ## as lab, with the originals: solutions and outputs
	$(LAB)/notebooks/00_start_here.ipynb $(AS_ROOT) $(ARGS)

test: install ## install, then run every test and every notebook with the network cut
	$(if $(ARGS),,OMP_NUM_THREADS=1) $(RUN) tools/offline.py $(RUN) -m pytest $(ALL) $(ARGS)

# One thread: these tests are so small that threads would mostly wait for each other.
test-fast: install ## as test, in two minutes: no notebook, and without what tests/slow.txt names
	OMP_NUM_THREADS=1 $(RUN) tools/offline.py $(RUN) -m pytest tests -o addopts= -p no:nbval -m "not slow" $(ARGS)

mutate: install ## change the library in small ways and see whether its tests notice: half an hour, and a package index once
	$(RUN) tools/mutate.py $(ARGS)

notebooks: install ## execute all notebooks again, in place
	$(RUN) tools/notebooks.py $(ARGS)

student: install ## make the students' copies of the notebooks again
	$(RUN) tools/student.py $(ARGS)

nbgrader: install ## install nbgrader beside the course, in .venv-nbgrader, so that `make test` tries it too
	$(RUN) tools/nbgrader_check.py --install

book: install ## build the book, all lessons and the library's reference as a site without network: build/book/html; ARGS=--lite adds lesson 00 as a page that runs in a browser
	$(RUN) tools/book.py $(ARGS)

slides: install ## make slides from the lessons' cells, one file a lesson: build/slides
	$(RUN) tools/slides.py $(ARGS)

results: install ## make the committed tables, pages and pictures again, hours; ARGS=--stale makes those alone that have to be
	$(RUN) tools/results.py $(ARGS)

bench: install ## measure everything beside other people's code on a quiet machine; ARGS="fisher growth" measures those alone
	$(RUN) bench/everything.py $(ARGS)

doctor: install ## say what works on this machine, what is missing and how to get it
	$(RUN) -m pandalib doctor $(ARGS)

lock: ## make requirements.lock again from pyproject.toml (needs the network)
	"$(PYTHON)" tools/lock.py $(ARGS)

clean: ## delete the virtual environments, the cache and what tests leave behind
	@"$(PYTHON)" tools/install.py --venv "$(VENV)" --remove
	rm -rf .venv-nbgrader .venv-peers .venv-lite data/cache .pytest_cache .hypothesis .coverage build *.egg-info
	find pandalib tests tools notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} + 2>/dev/null || true
