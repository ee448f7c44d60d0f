# make demo   the main job on scikit-learn's digits: train, export, verify, bundle, classify
# make test   linters, spelling, types, import rules and the default tests, including the device side on Python 3.11 and 3.13 if installed;
#             TESTS=tests/runtime runs all tests of a room instead
# make test-all   every test, planted faults and mutants: hours, for the night and before a release; .ci/run all installs what it needs
# make docs   the documentation site, in site/
# make release   wheel and sdist of the last commit in dist/, built twice with identical bytes and tried on Python 3.11 and 3.13
# make deb   Debian packages of the working tree for arm64 and amd64, in dist/

# Python's real path: a link to it may disappear
WHERE := import ensurepip, os, sys; print(os.path.realpath(sys.executable))
# the first Python that can make virtual environments
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do $$name -c '$(WHERE)' && break; done 2>/dev/null)
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
# a fresh environment: $(call environment,FOLDER,PYTHON)
environment = $(UV) venv --quiet --clear --python "$(2)" $(1)
INSTALL := $(UV) pip install --quiet --python
DEVICE_311 := .venv-device-3.11
DEVICE_313 := .venv-device-3.13
TFLITE := .venv-tflite-3.11
PUBLISH := .venv-publish
MEDIAPIPE := .venv-mediapipe-3.11
FAULTS := .venv-faults
HOME_ASSISTANT := .venv-home-assistant
# empty if this Python is missing or cannot make virtual environments: its tests are then skipped, with that reason
PYTHON_311 := $(shell python3.11 -c '$(WHERE)' 2>/dev/null)
PYTHON_313 := $(shell python3.13 -c '$(WHERE)' 2>/dev/null)
TESTS := -m "not slow and not guard"
# two processes, each with whole files, in the order from tests/conftest.py
SHARED := -n 2 --dist loadfile --no-loadscope-reorder

# hide Material's notice about other generators
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test test-all lint docs release deb device-venvs clean

demo: $(VENV)/.train
	$(BIN)/edgecnn run models/digits/recipe.toml --out demo/run
	$(BIN)/python tools/write_images.py --data digits --out demo/images --count 10
	$(BIN)/edgecnn classify demo/images --model demo/run/run.edgecnn --top-k 1
	$(BIN)/edgecnn run models/digits/recipe.toml --out demo/run

test: lint device-venvs
	$(BIN)/python -m pytest $(SHARED) $(TESTS)

# one process, since some tests need an idle machine
test-all: lint device-venvs $(MEDIAPIPE)/.done $(HOME_ASSISTANT)/.done $(FAULTS)/.done
	$(BIN)/python -m pytest
	$(BIN)/python tools/faults/plant.py run --out dist/planted.json
	$(BIN)/python tools/faults/mutants.py --out dist/mutants.json

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy edgecnn tools
	$(BIN)/lint-imports
	$(BIN)/codespell *.md docs edgecnn
	$(BIN)/python tools/faults/plant.py check

docs: $(VENV)/.dev
	$(BIN)/python -m mkdocs build --quiet

release: $(PUBLISH)/.done
	$(PUBLISH)/bin/python tools/release.py $(if $(and $(PYTHON_311),$(PYTHON_313)),,$(error a release is tried on Python 3.11 and 3.13: install both, with venv))--python $(PYTHON_311) --python $(PYTHON_313)

deb: $(PUBLISH)/.done
	$(PUBLISH)/bin/python tools/deb.py

$(UV): constraints.txt
	"$(or $(PYTHON),$(error no Python 3.11 to 3.13 with venv: apt-get install python3-venv, or PYTHON=/path/to/python3.13))" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	touch $@

$(VENV)/.train: $(UV) pyproject.toml constraints.txt
	$(INSTALL) $(VENV) -c constraints.txt -e '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(INSTALL) $(VENV) -c constraints.txt -e '.[train,backbones,dev,docs]'
	touch $@

device-venvs: $(if $(PYTHON_311),$(DEVICE_311)/.done $(TFLITE)/.done) $(if $(PYTHON_313),$(DEVICE_313)/.done)

$(DEVICE_311)/.done: $(UV) pyproject.toml constraints.txt
	$(call environment,$(DEVICE_311),$(PYTHON_311))
	$(INSTALL) $(DEVICE_311) -c constraints.txt -e .
	touch $@

$(DEVICE_313)/.done: $(UV) pyproject.toml constraints.txt
	$(call environment,$(DEVICE_313),$(PYTHON_313))
	$(INSTALL) $(DEVICE_313) -c constraints.txt -e .
	touch $@

$(TFLITE)/.done: $(UV) pyproject.toml constraints-tflite.txt
	$(call environment,$(TFLITE),$(PYTHON_311))
	$(INSTALL) $(TFLITE) -c constraints-tflite.txt numpy Pillow typer tflite-runtime
	$(INSTALL) $(TFLITE) --no-deps -e .
	touch $@

# with pip, which downloads wheels for another processor
$(PUBLISH)/.done: $(UV) pyproject.toml constraints.txt
	$(call environment,$(PUBLISH),$(PYTHON)) --seed
	$(INSTALL) $(PUBLISH) -c constraints.txt -e '.[publish]'
	touch $@

$(MEDIAPIPE)/.done: $(UV)
	$(call environment,$(MEDIAPIPE),$(or $(PYTHON_311),$(error MediaPipe is tried on Python 3.11: install it, with venv)))
	$(INSTALL) $(MEDIAPIPE) mediapipe==1.2.3
	touch $@

$(FAULTS)/.done: $(UV)
	$(call environment,$(FAULTS),$(PYTHON))
	$(INSTALL) $(FAULTS) cosmic-ray==8.7.0
	touch $@

# the packages that Home Assistant installs when you set up its integrations MQTT, generic camera and REST
$(HOME_ASSISTANT)/.done: $(UV)
	$(call environment,$(HOME_ASSISTANT),$(or $(PYTHON_313),$(error Home Assistant needs Python 3.13.2 or later, with venv)))
	$(INSTALL) $(HOME_ASSISTANT) homeassistant==2026.2.3 paho-mqtt==2.1.0 janus hassil numpy \
		av==16.0.1 Pillow==12.0.0 PyTurboJPEG==1.8.0 jsonpath==0.82.2 xmltodict==1.0.2 webrtc-models==0.3.0
	touch $@

clean:
	rm -rf .venv .venv-* demo dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
