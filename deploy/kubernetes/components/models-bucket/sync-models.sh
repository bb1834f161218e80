#!/bin/sh
# Copy a model's versions from a bucket: a new one appears whole, by one rename; one that is gone there goes here.
#   MODELS=bucket:my-bucket/models MODEL_NAME=tires sh sync-models.sh once          # or: for-ever
# A version counts once it has its saved_model.pb, so upload that file last. Where the bucket cannot be read, or holds
# no version at all, nothing is removed.
set -eu
folder=${MODELS_FOLDER:-/models}
here=$folder/$MODEL_NAME
there=$MODELS/$MODEL_NAME
parts=$folder/.parts

sync_models() {
  # Which versions are there.
  files=$(rclone lsf "$there" --recursive --files-only --include '/*/saved_model.pb') || return 1
  versions=$(echo "$files" | sed -n 's:^\([1-9][0-9]*\)/.*:\1:p')
  [ -n "$versions" ] || { echo "$there holds no version with a saved_model.pb; upload one" >&2; return 1; }
  # Take those that are new.
  mkdir -p "$here" "$parts" || return 1
  for version in $versions; do
    [ ! -d "$here/$version" ] || continue
    rclone sync "$there/$version" "$parts/$version" || return 1
    mv "$parts/$version" "$here/$version" || return 1
    echo "took version $version"
  done
  # Remove those that are gone.
  for path in "$here"/*; do
    version=${path##*/}
    echo "$versions" | grep -qx "$version" && continue
    mv "$path" "$parts/gone-$version" || return 1
    rm -r "$parts/gone-$version" || return 1
    echo "removed version $version"
  done
}

case ${1-} in
  once) sync_models ;;
  for-ever)
    trap 'exit 0' TERM
    while true; do
      sleep "${SYNC_SECONDS:-30}" & wait $!
      sync_models || echo "not in step with $there; trying again" >&2
    done ;;
  *) echo "say once or for-ever" >&2; exit 2 ;;
esac
