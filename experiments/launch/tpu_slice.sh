#!/usr/bin/env bash
# Creates a Cloud TPU slice, trains on it until the run is finished, and deletes it:
#   PROJECT=my-project ZONE=us-west4-a TYPE=v5litepod-16 BUCKET=gs://my-bucket \
#       experiments/launch/tpu_slice.sh --config=configs/imagenet_resnet34_resnet18.py
# The bucket holds the workdir (mounted by gcsfuse on every host) and the prepared data sets. SPOT=1 requests a slice that
# may be preempted: the run then saves and ends with status 75, and this script resumes it.
set -euo pipefail
: "${PROJECT:?}" "${ZONE:?}" "${TYPE:?}" "${BUCKET:?}"
NAME=${NAME:-switokd}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
here=(--project="$PROJECT" --zone="$ZONE")

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$NAME" "${here[@]}" --worker=all --command="$1"
}

gcloud compute tpus queued-resources create "$NAME" "${here[@]}" --node-id="$NAME" --accelerator-type="$TYPE" \
    --runtime-version="$VERSION" ${SPOT:+--spot}
trap 'gcloud compute tpus queued-resources delete "$NAME" "${here[@]}" --force --quiet' EXIT
until [ "$(gcloud compute tpus queued-resources describe "$NAME" "${here[@]}" --format='value(state.state)')" = ACTIVE ]
do
    sleep 30
done

git archive --format=tar.gz --output=/tmp/switokd_jax.tar.gz HEAD
gcloud compute tpus tpu-vm scp /tmp/switokd_jax.tar.gz "$NAME:" "${here[@]}" --worker=all
# The image's own Python is older than 3.11.
on_all_hosts "mkdir -p switokd_jax bucket && tar xzf switokd_jax.tar.gz -C switokd_jax && pip install -q --user uv \
    && ~/.local/bin/uv venv -q --python 3.12 env && ~/.local/bin/uv pip install -q --python env/bin/python \
    -e './switokd_jax[tpu]' && (mountpoint -q bucket || gcsfuse ${BUCKET#gs://} bucket)"

flags=$(printf ' %q' "$@")
for attempt in 1 2 3 4 5; do
    status=0
    on_all_hosts "cd switokd_jax && ../env/bin/python -m switokd_jax.main$flags --config.data.dir=\$HOME/bucket/tensorflow_datasets \
        --workdir=\$HOME/bucket/runs/$NAME" || status=$?
    [ "$status" -eq 75 ] || exit "$status"
    echo "attempt $attempt was preempted"
done
exit 75
