#!/usr/bin/env bash
# From nothing to a first result: bash dataset/demo.sh
# Uses the active virtual environment; makes .venv if none is active.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cat <<'TEXT'
This demo draws a small data set of LED boards, good ones and defective ones
with COCO annotations, and then does what you will do with your own images:
  1. prepare_dataset.py sorts the images into train/good, test/good and one test
     folder for each kind of defect,
  2. train.py learns from good images alone what a good board looks like,
  3. eval.py scores the test images, draws where they are unusual, and lists
     those that are probably mislabelled.
It takes about a minute on a processor without a GPU, longer on an old one;
installing torch before that may take a few. It writes only to dataset/sample,
dataset/boards and output/demo (and .venv, if no environment is active).
TEXT

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    [ -x .venv/bin/python ] || run python3 -m venv .venv
    source .venv/bin/activate
fi
run python -m pip install --quiet --disable-pip-version-check -r requirements.txt

[ -f dataset/sample/mislabelled.csv ] || run python dataset/make_sample.py --output_dir dataset/sample
run python prepare_dataset.py --annotations dataset/sample/annotations/instance.json --labeled_dir dataset/sample/images --unlabeled_dir dataset/sample/normal/B --output_dir dataset/boards --train_ratio 0.5 --overwrite
run python train.py --dataset custom --custom_dataset_path dataset/boards --output_dir output/demo --target_fpr 0.05 --overwrite
run python eval.py --dataset custom --custom_dataset_path dataset/boards --output_dir output/demo --map_format jpg

results=output/demo/anomaly_maps/custom
printf '\nThe most suspicious labels, from %s:\n' "$results/mismatch_samples.csv"
head -n 6 "$results/mismatch_samples.csv" | cut -d, -f1-3
printf '\nThree images of the sample are labelled wrongly on purpose (dataset/sample/mislabelled.csv):\n'
tail -n +2 dataset/sample/mislabelled.csv
printf '\nEach image beside its heat map: %s\nAll of it in a browser: %s\n' "$results/test/<class>/" "$results/report.html"
