# Gateway and model server in one container, for hosts that run one container and say its port in PORT (Heroku, Cloud
# Run, Fly and the like). 512 MB are enough for MobileNetV2 at 224 pixels.
#   docker build -f image-all-in-one.dockerfile -t loupe-all-in-one .
#   docker run --rm --read-only --tmpfs /tmp --memory 512m -p 9696:9696 loupe-all-in-one
#   docker run --rm -e PORT=8080 -p 8080:8080 -e MODEL_NAME=cars -v "$PWD/models:/app/models:ro" loupe-all-in-one
# Corrections need a folder that outlives the container: -e LOUPE_FEEDBACK_DIR=/feedback -v feedback:/feedback
FROM python:3.11-slim AS packages

COPY Pipfile Pipfile.lock ./
# Into a folder of its own, so that nothing that installs is copied on; without what only developers of numpy import, and
# OpenVINO's 60 MB for GPUs.
RUN pip install --no-cache-dir pipenv==2026.10.3 \
 && python -m venv --without-pip /opt/loupe \
 && VIRTUAL_ENV=/opt/loupe PIP_NO_CACHE_DIR=1 pipenv sync --categories "packages modelserver" \
 && find /opt/loupe \( -name tests -o -name f2py -o -name '*.pyi' -o -path '*/openvino/libs/*_[gn]pu_plugin.so' \
      -o -path '*/openvino/libs/cache.json' \) -prune -exec rm -r {} +

FROM python:3.11-slim

ENV PATH=/opt/loupe/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app

# The packages first: they change less often than the code.
COPY --from=packages /opt/loupe /opt/loupe
COPY serve.py gateway.py gunicorn.conf.py ./
COPY loupe/*.py loupe/
COPY loupe/engines loupe/engines
COPY loupe/images loupe/images
COPY loupe/gateway loupe/gateway
COPY loupe/modelserver loupe/modelserver
COPY data/samples data/samples
COPY models models
# A new volume that is mounted here takes over its owner.
RUN install -d -o 10001 -g 10001 /feedback

USER 10001
# What a host of 512 MB has room for beside the model: a PNG of 40 megapixels, and few bodies and URLs at a time.
# Metrics need no key: 9697 is for Prometheus inside, and not to be published.
ENV LOUPE_HOST=0.0.0.0 LOUPE_METRICS_PORT=9697 LOUPE_LOG_FORMAT=json MALLOC_ARENA_MAX=2 \
    LOUPE_THREADS=2 LOUPE_FETCHES=1 LOUPE_BODY_MEMORY=32000000 LOUPE_DECODE_MEMORY=200000000
EXPOSE 9696 9697
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "import http.client, os; \
  asked = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PORT') or 9696), timeout=2); \
  asked.request('GET', '/healthz'); raise SystemExit(asked.getresponse().status != 200)"]
CMD ["python", "serve.py"]
