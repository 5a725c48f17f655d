#!/usr/bin/env bash
# Train, classify and explain small models on real images: PneumoniaMNIST, ISIC 2019, ChestX-ray14.
#
#     bash benchmarks/real_data.sh DOWNLOADS RUNS [pneumoniamnist] [isic2019] [chestxray14]
#
# DOWNLOADS holds the official files: medmnist/pneumoniamnist.npz, isic2019/, chestxray14/ (their own layout inside).
# The presets do the work; what is given beside them only shortens the runs. A command whose output exists is skipped,
# so that the script goes on where it was stopped; RUNS/seconds.tsv notes how long each took.
# The oracle that judges the counterfactuals learns from the training patients; the images explained, and those of
# the final figures, are of the test split. Guidance scales are chosen on the validation split.
set -euo pipefail

downloads=$1 runs=$2
shift 2
python=${PYTHON:-python}
mkdir -p "$runs"

# once OUTPUT ARGUMENTS... runs Python with ARGUMENTS unless OUTPUT is there already.
once() {
  local output=$1 start=$SECONDS
  shift
  [[ -e $output ]] && return
  echo "+ python $*"
  "$python" "$@"
  printf '%s\t%s\n' "$((SECONDS - start))" "$*" >> "$runs/seconds.tsv"
}

# prepare NAME SHARE ARGUMENTS... converts the files and draws the labelled share, in percent.
prepare() {
  local name=$1 share=$2
  shift 2
  once "$runs/$name/data/dataset_info.json" training/prepare_dataset.py "$@" --output_dir "$runs/$name/data"
  once "$runs/$name/labelled.json" training/prepare_dataset.py split --dataset_dir "$runs/$name/data" \
    --share "$share" --by patient --seed 0 --output "$runs/$name/labelled.json"
}

# autoencoder NAME ARGUMENTS... as the preset has it: L1 and KL.
autoencoder() {
  local name=$1
  shift
  once "$runs/$name/autoencoder/config.json" training/train_autoencoder.py --preset "$name-small-autoencoder" \
    --dataset_dir "$runs/$name/data" --output_dir "$runs/$name/autoencoder" --resume_from_checkpoint latest "$@"
}

# adversarial NAME: what a discriminator, from step 100 on, makes of that autoencoder. Nothing else uses the result.
adversarial() {
  once "$runs/$1/autoencoder-adversarial/config.json" training/train_autoencoder.py \
    --preset "$1-small-autoencoder" --pretrained_vae "$runs/$1/autoencoder" --dataset_dir "$runs/$1/data" \
    --output_dir "$runs/$1/autoencoder-adversarial" --resume_from_checkpoint latest --train_batch_size 8 \
    --max_train_steps 300 --disc_start 100 --disc_channels 32 --learning_rate 2e-4 --lr_scheduler constant_with_warmup
}

# joint NAME ARGUMENTS... trains on all images, and classifies the labelled ones.
joint() {
  local name=$1
  shift
  once "$runs/$name/joint/model_index.json" training/train_joint.py --preset "$name-small" \
    --dataset_dir "$runs/$name/data" --labelled_split "$runs/$name/labelled.json" \
    --output_dir "$runs/$name/joint" --resume_from_checkpoint latest "$@"
}

# judge NAME ARGUMENTS... trains the oracle, then evaluates the classifier on the test split.
judge() {
  local name=$1
  shift
  once "$runs/$name/oracle/config.json" training/train_oracle.py --dataset_dir "$runs/$name/data" \
    --output_dir "$runs/$name/oracle" --seed 1000 "$@"
  once "$runs/$name/classification.json" training/evaluate_classification.py \
    --pretrained_model_name_or_path "$runs/$name/joint" --dataset_dir "$runs/$name/data" --output_dir "$runs/$name"
}

# explain NAME DIRECTION ARGUMENTS... chooses strength and scale on the validation split, for which the ARGUMENTS are,
# then explains images of the test split.
explain() {
  local name=$1 direction=$2
  shift 2
  once "$runs/$name/joint/guidance_calibration.json" training/calibrate_guidance.py \
    --pretrained_model_name_or_path "$runs/$name/joint" --dataset_dir "$runs/$name/data" \
    --direction "$direction" "$@"
  once "$runs/$name/counterfactuals/counterfactuals.json" training/evaluate_counterfactuals.py \
    --pretrained_model_name_or_path "$runs/$name/joint" --dataset_dir "$runs/$name/data" \
    --oracle_path "$runs/$name/oracle" --output_dir "$runs/$name/counterfactuals" --direction "$direction"
}

pneumoniamnist() {
  prepare pneumoniamnist 5 medmnist --npz_file "$downloads/medmnist/pneumoniamnist.npz" --image_size 32
  joint pneumoniamnist
  judge pneumoniamnist --resolution 32 --no-horizontal_flip --max_train_steps 400
  explain pneumoniamnist remove
}

chestxray14() {
  prepare chestxray14 100 chestxray14 --source_dir "$downloads/chestxray14" --image_size 64 --validation_share 10
  autoencoder chestxray14 --train_batch_size 8 --max_train_steps 800
  joint chestxray14 --vae_path "$runs/chestxray14/autoencoder" --cache_latents \
    --max_train_steps 1500 --classifier_start_step 1000
  judge chestxray14 --resolution 64 --no-horizontal_flip --max_train_steps 400
  explain chestxray14 both --num_images_per_label 4
  adversarial chestxray14
}

isic2019() {
  prepare isic2019 20 isic2019 --source_dir "$downloads/isic2019" --image_size 64
  joint isic2019
  judge isic2019 --resolution 48 --max_train_steps 400
  explain isic2019 add --num_images_per_label 4
}

for name in "${@:-pneumoniamnist chestxray14 isic2019}"; do
  for one in $name; do "$one"; done
done
