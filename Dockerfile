# The service as an image: `serve` has both back ends, `slim` only the C model (/generate/torch answers 501).
#
#     make image                                     builds both with docker, podman or buildah; trains weights if needed
#     docker build --target slim --tag rnn:slim .
#
# BASE       Debian with Python 3.11 or newer
# INSTALLER  uv, or pip for a network that reaches only its own index. The secret pip.conf then configures pip:
#            docker build --build-arg INSTALLER=pip --secret id=pip.conf,src=/etc/pip.conf .
# VERSION, REVISION  for the labels

ARG BASE=python:3.11-slim

# ---- The C library ---------------------------------------------------------------------------------------------------

FROM ${BASE} AS compile
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends gcc libc6-dev make
WORKDIR /src
COPY Makefile ./
COPY csrc csrc
RUN make lib

# ---- The service -------------------------------------------------------------------------------------------------------

FROM ${BASE} AS app
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends libgomp1 && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log && \
    useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin rnn
WORKDIR /app
COPY --from=compile /src/lib lib
COPY *.py ./
COPY rnnlm rnnlm
COPY service service
RUN python3 -m compileall -q --invalidation-mode unchecked-hash . && install --directory --owner rnn --group rnn weights
COPY --chown=10001:10001 weights/*.safetensors weights/
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2 HOST=0.0.0.0 PORT=8080
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="RNN word model" \
      org.opencontainers.image.description="An Elman recurrent word model, served over HTTP" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["python", "-m", "service.health"]
CMD ["python", "-m", "service"]

# ---- The two images: Python packages, each checked against its hash, plus the service ----------------------------------

FROM ${BASE} AS slim-packages
ARG INSTALLER=uv
WORKDIR /src
COPY deploy/install-packages.sh deploy/pinned-uv.txt deploy/pinned-slim.txt ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    sh install-packages.sh "$INSTALLER" /opt/venv pinned-slim.txt

FROM app AS slim
COPY --from=slim-packages /opt/venv /opt/venv

# The full image comes last, so that a builder that runs the stages in order builds `slim` without fetching torch.

FROM ${BASE} AS full-packages
ARG INSTALLER=uv
WORKDIR /src
COPY deploy/install-packages.sh deploy/pinned-uv.txt deploy/pinned-full.txt deploy/torch.txt ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    sh install-packages.sh "$INSTALLER" /opt/venv pinned-full.txt torch.txt

FROM app AS serve
COPY --from=full-packages /opt/venv /opt/venv
