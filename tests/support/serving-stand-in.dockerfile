# Stands in for tensorflow/serving where that image cannot be had: our own model server behind the entrypoint contract
# of the real one (a shell without exec, MODEL_NAME, MODEL_BASE_PATH, the same binary name, ports and flags).
FROM python:3.11-slim
LABEL loupe.stand-in=true
WORKDIR /app
COPY Pipfile Pipfile.lock ./
RUN pip install --no-cache-dir pipenv==2026.10.3 \
 && PIP_NO_CACHE_DIR=1 pipenv sync --system --categories "packages modelserver" \
 && rm -rf /root/.cache
COPY loupe loupe
ENV PYTHONPATH=/app MODEL_NAME=model MODEL_BASE_PATH=/models
RUN printf '#!/bin/bash\nexec python -m loupe.modelserver --address=0.0.0.0 "$@"\n' > /usr/bin/tensorflow_model_server \
 && printf '#!/bin/bash\n\ntensorflow_model_server --port=8500 --rest_api_port=8501 --model_name=${MODEL_NAME} --model_base_path=${MODEL_BASE_PATH}/${MODEL_NAME} "$@"\n' > /usr/bin/tf_serving_entrypoint.sh \
 && chmod +x /usr/bin/tensorflow_model_server /usr/bin/tf_serving_entrypoint.sh
WORKDIR /
EXPOSE 8500 8501
ENTRYPOINT ["/usr/bin/tf_serving_entrypoint.sh"]
