"""The largest numbers that may be asked for, typed or in a file: beyond, no work would ever end."""

STEPS = 2_000_000_000  # In a run or an episode; compiled programs count them in int32.
EPOCHS = 1_000_000  # Passes over a data set.
PERIOD = 10**12  # Between logs, checkpoints or evaluations: as good as never.
ROWS = 1 << 20  # Environments side by side.
EPISODES = 1_000_000
SEED = 2**31 - 2
NUM_SEEDS = 10_000
SAMPLES = 100_000  # For a prompt.
TOKENS = 1 << 24  # In a text.
IDS = 2**31 - 1  # In a vocabulary.
JOBS = 1_024
