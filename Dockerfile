# Both programs: `docker build --target controller .` and `docker build --target agent .`

FROM python:3.12-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/rap
COPY requirements ./requirements
RUN /opt/rap/bin/pip install --no-cache-dir --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY common ./common
COPY controller ./controller
COPY agent ./agent
COPY cli ./cli
RUN /opt/rap/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.12-slim-bookworm AS base
ENV PATH=/opt/rap/bin:$PATH PYTHONUNBUFFERED=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /srv/rap rap
COPY --from=build /opt/rap /opt/rap
WORKDIR /srv/rap
USER rap

FROM base AS controller
ENV WORKDIR=/srv/rap/work
RUN mkdir work
VOLUME /srv/rap/work
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
CMD ["rap", "controller"]

FROM base AS agent
USER root
# prlimit and flock (util-linux) are there already; bubblewrap needs user namespaces, see compose.yaml.
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap libseccomp2 \
    && rm -rf /var/lib/apt/lists/*
USER rap
ENV WORKDIR=/srv/rap/work \
    HIGH_PRIVACY_STORAGE_BASE=/srv/rap/storage/high_privacy \
    MEDIUM_PRIVACY_STORAGE_BASE=/srv/rap/storage/medium_privacy \
    HIGH_PRIVACY_ARCHIVE_DIR=/srv/rap/storage/archives
RUN mkdir -p work storage
VOLUME /srv/rap/work /srv/rap/storage
STOPSIGNAL SIGTERM
# Nothing connects to an agent, so there is no address to ask: it is healthy while it holds the lock on its WORKDIR,
# which it takes once everything it needs has been found to work.
HEALTHCHECK --interval=30s --timeout=5s CMD ["sh", "-c", "! flock --nonblock --exclusive work/agent.lock true"]
CMD ["rap", "agent"]
