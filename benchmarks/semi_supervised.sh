#!/usr/bin/env bash
# What each option for few labels does to the test AUROC: the tables of training/README.md.
#
#     bash benchmarks/semi_supervised.sh RUNS DATASET SEED [ROW...]
#
# DATASET is `phantom` or `pneumoniamnist`; RUNS/DATASET holds its prepared images in data/ and its 5 % of labels in
# labelled-5pct.json. All ROWs by default, the first of them first: the rows that only touch the second phase go on
# from its checkpoint, up to which they are the same run.
set -euo pipefail

runs=$1 dataset=$2 seed=$3
shift 3
python=${PYTHON:-python}

case $dataset in
  phantom) preset=phantom-demo start=400 steps=800 ;;
  pneumoniamnist) preset=pneumoniamnist-small start=400 steps=600 ;;
esac
middle=$(((start + steps) / 2))

arguments() {
  case $1 in
    baseline) ;;
    pseudo_labels) echo --pseudo_label_start_step "$middle" ;;
    balanced_sampling) echo --balanced_labelled_sampling ;;
    pos_weight) echo --pos_weight balanced ;;
    clean_inputs) echo --classifier_noise_prob 0 ;;
    min_snr) echo --snr_gamma 5 ;;
    v_prediction) echo --prediction_type v_prediction ;;
    zero_snr) echo --prediction_type v_prediction --rescale_betas_zero_snr ;;
    joint_from_start) echo --classifier_start_step 0 ;;
    *) echo "unknown row $1" >&2; exit 2 ;;
  esac
}

rows=(baseline pseudo_labels balanced_sampling pos_weight clean_inputs min_snr v_prediction zero_snr joint_from_start)
for row in "${@:-${rows[@]}}"; do
  folder=$runs/$dataset/$row-seed$seed
  [[ -e $folder/classification.json ]] && continue
  resume=()
  case $row in
    pseudo_labels | balanced_sampling | pos_weight | clean_inputs)
      resume=(--resume_from_checkpoint "$runs/$dataset/baseline-seed$seed/checkpoint-$start") ;;
  esac
  # shellcheck disable=SC2046
  "$python" training/train_joint.py --preset "$preset" --dataset_dir "$runs/$dataset/data" \
    --labelled_split "$runs/$dataset/labelled-5pct.json" --train_batch_size 16 --labelled_batch_size 16 \
    --max_train_steps "$steps" --classifier_start_step "$start" --validation_steps "$start" \
    --sample_steps "$steps" --checkpointing_steps "$start" --checkpoints_total_limit 2 \
    --seed "$seed" --output_dir "$folder" "${resume[@]}" $(arguments "$row")
  "$python" training/evaluate_classification.py --pretrained_model_name_or_path "$folder" \
    --dataset_dir "$runs/$dataset/data" --output_dir "$folder"
done
