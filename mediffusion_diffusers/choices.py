"""Words that options choose among, each set in one place; nothing is imported that a command line would wait for."""

from typing import Literal


# Where the classifier is asked: the model's own, in three places (see `guidance.predict_guided`).
OwnGuidanceMode = Literal["zt", "x0_detached", "x0"]

# What is done to a finding.
Direction = Literal["remove", "add"]

# Which rows of a dataset are explained (see `requests.counterfactuals`).
RowRule = Literal["all", "labelled", "predicted"]

# Who runs the work on a whole dataset (see `explanation`).
Engine = Literal["accelerate", "ray"]

# What lists of labels hold (see `data.labels`).
LabelKind = Literal["auto", "names", "indices", "vectors"]

# How a labelled share is drawn (see `data.splits`).
Draw = Literal["patient", "class"]

# What is asked of a procedure by further edits (see `evaluation.sanity_checks`).
SanityCheck = Literal["reversibility", "diversity", "head_randomisation"]

# How probabilities are calibrated (see `evaluation.probability_calibration`).
CalibrationMethod = Literal["platt", "temperature"]

# Who makes the images of a reader study (see `reader_study.methods`).
ReaderMethod = Literal["ours", "plain_gradient", "paper", "null_edit"]
