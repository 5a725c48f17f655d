"""What studies take where nothing else is asked for; nothing is imported that a command line would wait for."""

NUM_RESAMPLES = 1000  # draws of patients for an interval
CLASSIFICATION_BATCH_SIZE = 64

# A calibration looks for edits that the model sees as it sees real images, so closely and in so many trials ...
TOLERANCE = 0.02
MAX_TRIALS = 7
# ... and refuses scales that break images apart. Chosen, not derived: chest radiographs had dissolved at an L1 of 0.1.
MAX_L1 = 0.04
MAX_CLIPPED = 0.05
