# Two commands, each from a clean clone on a fresh machine:
#   make map    set up and map the brown bear in north-western North America into maps/
#   make test   set up and run the tests
# And for developers:
#   make check  set up and look at style, types and the direction of imports
#   make hashes the hashes of the bundled models and layers, after one of them has changed
#   make docs   set up and build the documentation site into site/
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: map test check hashes docs clean

map: $(VENV)/.installed
	$(BIN)/taxabind-map "Ursus arctos" --bbox -170 48 -100 72 --out maps --overwrite

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto $(PYTEST_ARGS)

check: $(VENV)/.installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

hashes: $(VENV)/.installed
	$(BIN)/python recipes/hashes.py

# The constraints hold the exact versions the project was tested with.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,taxabind,train]"
	# What the published encoders are compared with. Without dependencies: they would bring another torch.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps open_clip_torch timm torchvision
	touch $@ $(VENV)/.installed

$(VENV)/.installed-check: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[check]"
	touch $@

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) maps site
