# make demo   the main job on scikit-learn's digits: train, export, verify, bundle, classify
# make test   linters, spelling, types, import rules and all default tests, including the device side on Python 3.11 and 3.13 if installed
# make test-slow   the slow tests that make test leaves out: further variants of its tests
# make test-tools   the default tests that need programs which a bare machine lacks; make test skips them there
# make test-viewers   how much 16 viewers cost the camera loop; takes a minute on an otherwise idle machine
# make test-planted   how many of fifty planted faults make test catches; takes one to two hours, and resumes after an interruption
# make test-faults   how many of 400 cosmic-ray mutants the tests next to the code catch; takes about an hour; ROOMS="verify/gate" runs that module in full
# make test-mediapipe   the file for MediaPipe, run by MediaPipe itself in a virtual environment of 650 MB
# make docs   the documentation site, in site/
# make release   wheel and sdist of the last commit in dist/, built twice with identical bytes and tried on Python 3.11 and 3.13
# make deb   Debian packages of the working tree for arm64 and amd64, in dist/
# make test-home-assistant   MQTT, the API and the camera's picture with Home Assistant itself; needs Python 3.13.2 or later, and mosquitto
# make test-emulated   in QEMU: an arm64 board with a camera (pictures, faults, self-test), and bundles on the processors of four boards
# make test-service   in QEMU: an arm64 board with Debian's systemd (the package from apt install to purge, power cuts); takes minutes

# Python's real path: a link to it may disappear
WHERE := import ensurepip, os, sys; print(os.path.realpath(sys.executable))
# the first Python that can make virtual environments
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do $$name -c '$(WHERE)' && break; done 2>/dev/null)
MAKE_VENV = "$(or $(PYTHON),$(error no Python 3.11 to 3.13 with venv: apt-get install python3-venv, or PYTHON=/path/to/python3.13))" -m venv
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check
DEVICE_311 := .venv-device-3.11
DEVICE_313 := .venv-device-3.13
TFLITE := .venv-tflite-3.11
MEDIAPIPE := .venv-mediapipe-3.11
FAULTS := .venv-faults
HOME_ASSISTANT := .venv-home-assistant
# empty if this Python is missing or cannot make virtual environments: its tests are then skipped, with that reason
PYTHON_311 := $(shell python3.11 -c '$(WHERE)' 2>/dev/null)
PYTHON_313 := $(shell python3.13 -c '$(WHERE)' 2>/dev/null)
ORDINARY := not long and not emulated and not gpu
DEFAULT := not slow and $(ORDINARY)
# two processes, each with whole files, in the order from tests/conftest.py
SHARED := -n 2 --dist loadfile --no-loadscope-reorder

# hide Material's notice about other generators
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test test-slow test-tools test-viewers test-planted test-faults test-mediapipe test-home-assistant test-emulated test-service lint docs release deb device-venvs clean

demo: $(VENV)/.train
	$(BIN)/edgecnn run models/digits/recipe.toml --out demo/run
	$(BIN)/python tools/write_images.py --data digits --out demo/images --count 10
	$(BIN)/edgecnn classify demo/images --model demo/run/run.edgecnn --top-k 1
	$(BIN)/edgecnn run models/digits/recipe.toml --out demo/run

test: lint device-venvs
	$(BIN)/python -m pytest $(SHARED) -m "$(DEFAULT)"

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest $(SHARED) -m "slow and $(ORDINARY)"

test-tools: $(VENV)/.dev device-venvs
	$(BIN)/python -m pytest -m "needs and $(ORDINARY)"

test-viewers: $(VENV)/.dev
	$(BIN)/python -m pytest tests/device/http/test_viewers.py

test-planted: $(VENV)/.dev device-venvs
	$(BIN)/python tools/faults/plant.py check
	$(BIN)/python tools/faults/plant.py run --out dist/planted.json

test-faults: $(VENV)/.dev device-venvs $(FAULTS)/.done
	$(BIN)/python tools/faults/mutants.py --out dist/mutants.json $(if $(ROOMS),--rooms $(ROOMS)) $(if $(COUNT),--count $(COUNT))

test-mediapipe: $(VENV)/.dev $(MEDIAPIPE)/.done
	$(BIN)/python -m pytest tests/verify/test_mediapipe.py

test-home-assistant: $(VENV)/.dev $(HOME_ASSISTANT)/.done
	$(BIN)/python -m pytest -m slow tests/device/mqtt tests/device/http/test_home_assistant.py

test-emulated: $(VENV)/.dev
	$(BIN)/python -m pytest -m "emulated and not slow" tests/emulated tests/emulate --durations=5

test-service: $(VENV)/.dev
	$(BIN)/python -m pytest -m "emulated and slow" tests/emulated --durations=5

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy edgecnn tools
	$(BIN)/lint-imports
	$(BIN)/codespell *.md docs edgecnn

docs: $(VENV)/.dev
	$(BIN)/python -m mkdocs build --quiet

release: $(VENV)/.release
	$(BIN)/python tools/release.py $(if $(and $(PYTHON_311),$(PYTHON_313)),,$(error a release is tried on Python 3.11 and 3.13: install both, with venv))--python $(PYTHON_311) --python $(PYTHON_313)

deb: $(VENV)/.dev
	$(BIN)/python tools/deb.py

$(VENV)/.train: pyproject.toml constraints.txt
	$(MAKE_VENV) $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt -e '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(BIN)/python $(PIP) -c constraints.txt -e '.[train,backbones,dev,docs]'
	touch $@

$(VENV)/.release: $(VENV)/.dev
	$(BIN)/python $(PIP) -c constraints.txt -e '.[publish]'
	touch $@

device-venvs: $(if $(PYTHON_311),$(DEVICE_311)/.done $(TFLITE)/.done) $(if $(PYTHON_313),$(DEVICE_313)/.done)

$(DEVICE_311)/.done: pyproject.toml constraints.txt
	"$(PYTHON_311)" -m venv $(DEVICE_311)
	$(DEVICE_311)/bin/python $(PIP) -c constraints.txt -e .
	touch $@

$(DEVICE_313)/.done: pyproject.toml constraints.txt
	"$(PYTHON_313)" -m venv $(DEVICE_313)
	$(DEVICE_313)/bin/python $(PIP) -c constraints.txt -e .
	touch $@

$(TFLITE)/.done: pyproject.toml constraints-tflite.txt
	"$(PYTHON_311)" -m venv $(TFLITE)
	$(TFLITE)/bin/python $(PIP) -c constraints-tflite.txt numpy Pillow typer tflite-runtime
	$(TFLITE)/bin/python $(PIP) --no-deps -e .
	touch $@

$(MEDIAPIPE)/.done:
	"$(or $(PYTHON_311),$(error MediaPipe is tried on Python 3.11: install it, with venv))" -m venv $(MEDIAPIPE)
	$(MEDIAPIPE)/bin/python $(PIP) mediapipe==1.2.3
	touch $@

$(FAULTS)/.done: $(VENV)/.dev
	$(BIN)/python -m venv $(FAULTS)
	$(FAULTS)/bin/python $(PIP) cosmic-ray==8.7.0
	touch $@

# the packages that Home Assistant installs when you set up its integrations MQTT, generic camera and REST
$(HOME_ASSISTANT)/.done:
	"$(or $(PYTHON_313),$(error Home Assistant needs Python 3.13.2 or later, with venv))" -m venv $(HOME_ASSISTANT)
	$(HOME_ASSISTANT)/bin/python $(PIP) homeassistant==2026.2.3 paho-mqtt==2.1.0 janus hassil numpy \
		av==16.0.1 Pillow==12.0.0 PyTurboJPEG==1.8.0 jsonpath==0.82.2 xmltodict==1.0.2 webrtc-models==0.3.0
	touch $@

clean:
	rm -rf .venv .venv-* demo dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
