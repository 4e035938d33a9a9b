"""One intra-op thread (small tensors are slower with two) and derandomised hypothesis, for every test."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")
