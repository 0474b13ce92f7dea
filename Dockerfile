# The gateway as an image: docs/install.md. Runs as a user without rights, on a read-only root; writes
# to the volume /data and to /tmp alone.
ARG PYTHON=3.13-slim-bookworm

FROM python:${PYTHON} AS packages
WORKDIR /app
COPY requirements.txt ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r requirements.txt \
    && /opt/venv/bin/pip uninstall --yes pip
COPY manage.py ./
COPY qwenproxy ./qwenproxy
COPY sessions_app ./sessions_app
COPY requests_app ./requests_app
# A checkout may be its owner's alone, and a read-only root keeps no byte code of its own.
RUN chmod -R u=rwX,go=rX /app \
    && python -m compileall -q /app

FROM python:${PYTHON}
RUN groupadd --system --gid 10001 qwenproxy \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /data qwenproxy \
    && install --directory --owner 10001 --group 10001 --mode 0700 /data
COPY --from=packages /opt/venv /opt/venv
COPY --from=packages /app /app
WORKDIR /app
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    QWENPROXY_DATA_DIR=/data \
    QWENPROXY_HOST=0.0.0.0 \
    QWENPROXY_PORT=8100
USER 10001:10001
VOLUME /data
EXPOSE 8100
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["/opt/venv/bin/python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['QWENPROXY_PORT'] + '/healthz', timeout=4)"]
ENTRYPOINT ["/opt/venv/bin/python", "/app/manage.py"]
CMD ["serve"]
