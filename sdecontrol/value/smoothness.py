"""Whether a reward can be differentiated along paths: rules that are blind to jumps must refuse them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdecontrol.errors import NotDefined
from sdecontrol.noise import Noise
from sdecontrol.value.integrand import Task

_POINTS = 17  # 16 segments
_PIECES = 64  # of a segment, and how many of all the pieces are looked at closely
_HALVINGS = 25  # of a piece: a continuous reward's change shrinks with it
_SHARE = 1e-3  # of the largest change along a piece: what may be left of it


def check_smooth(task: Task, noise: Noise) -> None:
    """Raise NotDefined when a reward has no gradient, or jumps somewhere between outputs of the reference process."""
    z = next(iter(task.integrand.draws(noise, "smoothness", _POINTS)))[:_POINTS]
    ends = task.integrand.ends(z)
    _check("reward", task.problem.reward, ends)
    if task.problem.running_reward is not None:
        _check("running reward", lambda x: task.problem.running_rate(task.t, x), ends)


def _check(name: str, reward: Callable[[Tensor], Tensor], points: Tensor) -> None:
    with torch.enable_grad():
        differentiable = reward(points.clone().requires_grad_()).requires_grad
    if not differentiable:
        raise _refusal(f"the {name} has no gradient")
    if jumps(reward, points[:-1], points[1:]):
        raise _refusal(f"the {name} jumps between outputs of the process")


def _refusal(seen: str) -> NotDefined:
    return NotDefined(
        f"saw that {seen}, so derivatives along paths miss part of the answer; wanted a continuous reward with a "
        "gradient. Use Bismut() or LikelihoodRatio(), which never differentiate the reward."
    )


def jumps(f: Callable[[Tensor], Tensor], a: Tensor, b: Tensor) -> bool:
    """Whether f jumps on a segment from a_i to b_i: (m, *event) twice.

    Each segment is cut into 64 pieces; those where f bends most are halved again and again towards the larger change,
    which shrinks with the piece unless f jumps there.
    """
    share = torch.linspace(0, 1, _PIECES + 1, dtype=a.dtype).reshape(-1, 1, *(1 for _ in a.shape[1:]))
    points = a + share * (b - a)
    values = f(points.flatten(0, 1)).double().reshape(_PIECES + 1, len(a))
    bend = values.diff(dim=0).diff(dim=0).abs()
    bend = torch.maximum(torch.cat([bend, bend[-1:]]), torch.cat([bend[:1], bend]))
    chosen = bend.flatten().topk(_PIECES).indices
    a, b = points[:-1].flatten(0, 1)[chosen], points[1:].flatten(0, 1)[chosen]
    f_a, f_b = values[:-1].flatten()[chosen], values[1:].flatten()[chosen]
    largest, size = float((f_b - f_a).abs().max()), float(values.abs().max())
    for _ in range(_HALVINGS):
        middle = (a + b) / 2
        f_m = f(middle).double()
        first = (f_m - f_a).abs() > (f_b - f_m).abs()
        where = first.reshape(-1, *(1 for _ in a.shape[1:]))
        a, b = torch.where(where, a, middle), torch.where(where, middle, b)
        f_a, f_b = torch.where(first, f_a, f_m), torch.where(first, f_m, f_b)
    return float((f_b - f_a).abs().max()) > _SHARE * largest + 1e-6 * size
