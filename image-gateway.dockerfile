# The gateway: Flask under gunicorn, no TensorFlow.
#   docker build -f image-gateway.dockerfile -t loupe-gateway .
#   docker build -f image-gateway.dockerfile -t loupe-gateway --build-arg MORE=tracing .     # with OpenTelemetry
#   docker run --rm --read-only --tmpfs /tmp -p 9696:9696 -e TF_SERVING_HOST=models.example.org:8500 loupe-gateway
# Corrections need a folder that outlives the container: -e LOUPE_FEEDBACK_DIR=/feedback -v feedback:/feedback
FROM python:3.11-slim AS packages

ARG MORE=
COPY Pipfile Pipfile.lock ./
# Into a folder of its own, so that nothing that installs is copied on; without what only developers of numpy import.
RUN pip install --no-cache-dir pipenv==2026.10.3 \
 && python -m venv --without-pip /opt/loupe \
 && VIRTUAL_ENV=/opt/loupe PIP_NO_CACHE_DIR=1 pipenv sync --categories "packages $MORE" \
 && find /opt/loupe \( -name tests -o -name f2py -o -name '*.pyi' \) -prune -exec rm -r {} +

FROM python:3.11-slim

ENV PATH=/opt/loupe/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app

# The packages first: they change less often than the code.
COPY --from=packages /opt/loupe /opt/loupe
COPY gateway.py gunicorn.conf.py ./
COPY loupe/*.py loupe/
COPY loupe/images loupe/images
COPY loupe/gateway loupe/gateway
COPY data/samples data/samples
# A new volume that is mounted here takes over its owner.
RUN install -d -o 10001 -g 10001 /feedback

USER 10001
# Metrics need no key: 9697 is for Prometheus inside, and not to be published.
ENV LOUPE_HOST=0.0.0.0 LOUPE_METRICS_PORT=9697 LOUPE_DRAIN=5
EXPOSE 9696 9697
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import http.client; asked = http.client.HTTPConnection('127.0.0.1', 9696, timeout=2); \
  asked.request('GET', '/healthz'); raise SystemExit(asked.getresponse().status != 200)"]
CMD ["gunicorn", "gateway:app"]
