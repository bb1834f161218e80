# Loupe's own model server with the models of this folder baked in: in place of TensorFlow Serving where that has no
# build (ARM), or where less memory is wanted. Same environment, ports and flags; OpenVINO, no TensorFlow; amd64 and arm64.
#   docker build -f image-embedded.dockerfile -t loupe-embedded .
#   docker run --rm -p 8500:8500 -p 8501:8501 loupe-embedded --tensorflow_intra_op_parallelism=2 --grpc_max_threads=64
#   docker run --rm -p 8501:8501 -e MODEL_NAME=cars -v "$PWD/models:/models:ro" loupe-embedded
# Arguments replace those of CMD below.
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
COPY loupe/*.py loupe/
COPY loupe/engines loupe/engines
COPY loupe/modelserver loupe/modelserver
COPY deploy/serving /etc/loupe
COPY models /models

USER 10001
# As in tensorflow/serving: the model is MODEL_BASE_PATH/MODEL_NAME.
ENV MODEL_NAME=tires MODEL_BASE_PATH=/models
EXPOSE 8500 8501
# Healthy while a version answers.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "import http.client, os; \
  asked = http.client.HTTPConnection('127.0.0.1', 8501, timeout=2); \
  asked.request('GET', '/v1/models/' + os.environ['MODEL_NAME']); \
  raise SystemExit(b'\"AVAILABLE\"' not in asked.getresponse().read())"]
ENTRYPOINT ["python", "-m", "loupe.modelserver", "--address=0.0.0.0", "--port=8500", "--rest_api_port=8501"]
CMD ["--monitoring_config_file=/etc/loupe/monitoring.txt", "--grpc_max_threads=64", \
     "--grpc_channel_arguments=grpc.max_connection_age_ms=20000"]
