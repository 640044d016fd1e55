#!/usr/bin/env bash
# Trains for ten minutes on one GPU and leaves what is worth bringing back in pieces of at most 16 MB.
#
#   training/ten_minutes.sh IMAGES INIT OUT [more options of python -m training]
#
# IMAGES is a folder of training images, INIT the model folder to begin with, OUT an empty folder for the pieces.
# Together again:  cat OUT/model.tar.* | tar x -C FOLDER   (checksums: sha256sum -c SHA256SUMS, in OUT)
# The optimiser's state is left behind: it is four times the weights, and new after a few hundred steps.
set -euo pipefail
images=$(realpath "$1") init=$(realpath "$2") out=$(realpath "$3")
shift 3
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# 500 of ten minutes: reading the images and packing the results take their part.
timeout 590 python3 -m training --images "$images" --init "$init" --out "$work" \
    --device cuda --batch 32 --rate 1.2e-3 --seconds 500 "$@" 2>&1 | tee "$out/log.txt" || echo "stopped early: the last saved state is packed"

tar c -C "$work" unet context.safetensors model_index.json scheduler | split -b 16000000 -d - "$out/model.tar."
(cd "$work" && cp work/*.csv "$out")
(cd "$out" && sha256sum -- * >SHA256SUMS)
