# Stands in for nginx where that image cannot be had: Debian's nginx in the same places, under the name that
# deploy/compose/replicas.yaml pins.
FROM python:3.11-slim
LABEL loupe.stand-in=true
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light \
 && rm -rf /var/lib/apt/lists/* /etc/nginx/nginx.conf
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
