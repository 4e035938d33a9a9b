"""One intra-op thread (small tensors are slower with two) and derandomised hypothesis, for every test."""

import os
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def tiny_pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random Stable Diffusion pipeline on latents (4, 8, 8); tests leave it as it is."""
    import tiny_pipelines

    return tiny_pipelines.stable_diffusion(tmp_path_factory.mktemp("tokens"))
