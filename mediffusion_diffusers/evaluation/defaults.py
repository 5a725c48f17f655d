"""What studies take where nothing else is asked for; nothing is imported that a command line would wait for."""

NUM_RESAMPLES = 1000  # draws of patients for an interval
CLASSIFICATION_BATCH_SIZE = 64

# A calibration takes the smallest change that flips so many of the model's decisions.
MIN_FLIP_RATE = 0.95
MAX_L1 = 0.04  # chosen, not derived: chest radiographs had dissolved at 0.1
