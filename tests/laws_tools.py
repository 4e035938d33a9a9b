"""Shared by the tests of the laws: derivatives by autograd, z-scores with a family-wise rate."""

import torch
from scipy import stats
from torch import Tensor

from sdecontrol.laws import Law

FAMILY_WISE = 1e-6  # chance that a correct sampler fails one assertion of `assert_z`


def points(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(n, d) points as a strided view of (d, n) memory."""
    generator = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(d, n, generator=generator, dtype=torch.float64)).to(dtype).mT


def positive(d: int, seed: int, k: int | None = None) -> Tensor:
    """Random covariances (d, d) or (k, d, d)."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(*(() if k is None else (k,)), d, d, generator=generator, dtype=torch.float64)
    return a @ a.mT / d + 0.2 * torch.eye(d, dtype=torch.float64)


def symmetric(d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return (a + a.mT) / 2


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def assert_derivatives(law: Law, x: Tensor) -> None:
    """The score is the gradient of log_prob and score_jvp the gradient of score . c."""
    y = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(law.log_prob(y).sum(), y)
    score = law.score(x)
    torch.testing.assert_close(score, slope, rtol=1e-11, atol=1e-11)
    c = torch.cos(3 * x) + 0.3
    (bend,) = torch.autograd.grad((law.score(y) * c).sum(), y)
    torch.testing.assert_close(law.score_jvp(x, c), bend, rtol=1e-11, atol=1e-11)
    assert law.dim == 1 or score.stride() == x.stride()  # the view of (d, n) memory is kept


def assert_z(sample: Tensor, mean: Tensor, covariance: Tensor) -> None:
    """Means and products of centred coordinates, each against its expectation in its own standard error."""
    x = sample.to(torch.float64) - mean
    products = x[:, :, None] * x[:, None, :]
    statistics = torch.cat([x, products.flatten(1)], 1)
    wanted = torch.cat([torch.zeros_like(mean), covariance.flatten()])
    z = (statistics.mean(0) - wanted) / (statistics.std(0) / len(x) ** 0.5)
    assert float(z.abs().max()) < stats.norm.isf(FAMILY_WISE / (2 * len(wanted)))


def assert_prefix_stable(law: Law, noise, n: int = 100_000) -> Tensor:
    """The first draws do not depend on how many are drawn; returns the long sample."""
    long = law.sample(n, noise)
    assert torch.equal(law.sample(10, noise), long[:10])
    return long
