# Stands in for prom/prometheus where that image cannot be had: Debian's Prometheus with the real one's entrypoint, its
# user and its folders, under the name that deploy/compose/monitoring.yaml pins.
FROM python:3.11-slim
LABEL loupe.stand-in=true
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus \
 && rm -rf /var/lib/apt/lists/* /etc/prometheus \
 && install -d -o 65534 -g 65534 /prometheus /etc/prometheus
USER 65534:65534
EXPOSE 9090
VOLUME ["/prometheus"]
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
