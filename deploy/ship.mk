# Images and releases. Part of the Makefile.

.PHONY: image test-image test-small dist pin licences sbom

## Shipping

VERSION  := $(shell sed -n 's/^VERSION = "\(.*\)"/\1/p' rnnlm/version.py)
REVISION  = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
ENGINE   ?= $(firstword $(foreach name,docker podman buildah,$(shell $(name) info >/dev/null 2>&1 && echo $(name))))

image: ## build the images rnn:serve and rnn:slim, weights/ included, with docker, podman or buildah (ENGINE=...)
	@command -v "$(firstword $(ENGINE))" >/dev/null || \
	    { echo "make image needs docker, podman or buildah, running$(if $(ENGINE),: there is no $(ENGINE))" >&2; exit 2; }
	@ls weights/*.safetensors >/dev/null 2>&1 || $(MAKE) train
	for target in slim serve; do $(ENGINE) build $(if $(filter docker,$(ENGINE)),,--format docker) --target $$target \
	    --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) $(IMAGE_OPTIONS) --tag rnn:$$target . || exit; done

test-image: $(VENV)/.dev lib ## build both images in a chroot with buildah, as root, and send them requests
	@ls weights/*.safetensors >/dev/null 2>&1 || $(MAKE) train
	$(PYTEST) -m 'slow or not slow' tests/service/test_image.py

test-small: $(VENV)/.run lib ## the service on one processor with one gigabyte: WikiText-2's size, then 200,000 words
	$(PY) bench/small.py

DIST    := dist/rnn-$(VERSION)
ARM_CC  ?= aarch64-linux-gnu-gcc

dist: lib ## fill dist/: the source, the library for Linux (x86-64, arm64) and Windows, licences, SBOM, checksums
	@git diff --quiet HEAD || { echo "make dist: commit first: uncommitted changes would be missing" >&2; exit 2; }
	rm -rf dist && mkdir -p dist
	git archive --prefix=rnn-$(VERSION)/ --output=$(DIST).tar.gz HEAD
	cp lib/rnnlib.so $(DIST)-linux-$(firstword $(subst -, ,$(MACHINE))).so
	$(MAKE) dll
	cp lib/rnnlib.dll $(DIST)-windows-x86_64.dll
	$(MAKE) lib CC=$(ARM_CC) LIBRARY=build/rnnlib-aarch64.so
	cp build/rnnlib-aarch64.so $(DIST)-linux-aarch64.so
	cp docs/licences.md dist
	$(MAKE) sbom
	cd dist && sha256sum * >SHA256SUMS

PIN = $(VENV)/bin/uv pip compile --quiet --upgrade --generate-hashes --universal --python-version 3.11 \
      --no-annotate --custom-compile-command "make pin"

pin: $(VENV)/.ship ## pin the newest packages for the image, with hashes: deploy/pinned-*.txt
	$(PIN) --output-file deploy/pinned-slim.txt deploy/requirements-slim.txt
	$(PIN) --output-file deploy/pinned-full.txt deploy/requirements-slim.txt deploy/torch-needs.in
	echo uv | $(PIN) --output-file deploy/pinned-uv.txt -

licences: build/image/.done ## write docs/licences.md, the licences of the image's packages (INSTALLER=pip: without uv)
	{ echo "# Licences"; echo; echo "The licences of the Python packages in the image, as the packages state them (\`make licences\`)."; echo; \
	  $(VENV)/bin/pip-licenses --python build/image/bin/python --format markdown; } >docs/licences.md

sbom: build/image/.done ## write dist/sbom.json, the image's packages as a CycloneDX bill of materials
	@mkdir -p dist
	$(VENV)/bin/cyclonedx-py environment --output-reproducible --output-file dist/sbom.json build/image/bin/python

INSTALLER ?= uv

build/image/.done: $(VENV)/.ship deploy/install-packages.sh deploy/pinned-full.txt deploy/torch.txt
	rm -rf $(@D)
	cd deploy && sh install-packages.sh $(INSTALLER) $(CURDIR)/$(@D) pinned-full.txt torch.txt
	touch $@

$(VENV)/.ship: deploy/requirements-ship.txt $(VENV)/.run
	$(PIP_INSTALL) $<
	touch $@
