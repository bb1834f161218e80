# The gateway: Flask under gunicorn, no TensorFlow.
#   docker build -f image-gateway.dockerfile -t loupe-gateway .
#   docker build -f image-gateway.dockerfile -t loupe-gateway --build-arg MORE=tracing .     # with OpenTelemetry
FROM python:3.11-slim

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app

# The packages first: they change less often than the code.
ARG MORE=
COPY Pipfile Pipfile.lock ./
RUN pip install --no-cache-dir pipenv==2026.10.3 \
 && PIP_NO_CACHE_DIR=1 pipenv sync --system --categories "packages $MORE" \
 && rm -rf /root/.cache

COPY gateway.py gunicorn.conf.py ./
COPY loupe/*.py loupe/
COPY loupe/images loupe/images
COPY loupe/gateway loupe/gateway
COPY data/samples data/samples

USER 10001
# Metrics need no key: 9697 is for Prometheus inside, and not to be published.
ENV LOUPE_HOST=0.0.0.0 LOUPE_METRICS_PORT=9697
EXPOSE 9696 9697
HEALTHCHECK --interval=10s --timeout=2s --start-period=30s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://localhost:9696/healthz', timeout=1)"]
CMD ["gunicorn", "gateway:app"]
