# Stands in for tensorflow/serving where that image cannot be had: our own model server behind the entrypoint contract
# of the real one (root, a shell without exec, the same binary name, ports and flags, no model in it).
ARG EMBEDDED=loupe-embedded
FROM ${EMBEDDED}
LABEL loupe.stand-in=true
USER root
WORKDIR /
ENV PYTHONPATH=/app MODEL_NAME=model
RUN rm -r /models/* /etc/loupe \
 && printf '#!/bin/bash\nexec python -m loupe.modelserver --address=0.0.0.0 "$@"\n' > /usr/bin/tensorflow_model_server \
 && printf '#!/bin/bash\n\ntensorflow_model_server --port=8500 --rest_api_port=8501 --model_name=${MODEL_NAME} --model_base_path=${MODEL_BASE_PATH}/${MODEL_NAME} "$@"\n' > /usr/bin/tf_serving_entrypoint.sh \
 && chmod +x /usr/bin/tensorflow_model_server /usr/bin/tf_serving_entrypoint.sh
HEALTHCHECK NONE
ENTRYPOINT ["/usr/bin/tf_serving_entrypoint.sh"]
CMD []
