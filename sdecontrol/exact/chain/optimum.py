"""The optimum of the discrete chain itself: affine chains with quadratic rewards, in closed form.

For x+ = M_k x + m_k + N_k z, z ~ N(0, I), and reward r(x_K) + sum_k dt_k running(x_k), the value in units of the
temperature T is a quadratic (derived: exponentials of quadratics are closed under Gaussian steps, quadratic.py):

    V_K = r/T,    V_k(x) = dt_k running(x)/T + log E exp V_{k+1}(M_k x + m_k + N_k z),    Z = E_{p_noise} exp V_0.

With V_{k+1} = c + gamma . x - x' kappa x / 2, H = I + N' kappa N and a = M x + m, the optimal noise is
N(w, H^-1), w = H^-1 N' (gamma - kappa a).

Mean shifts only (every network that is trained on a drift) have a value recursion of their own,

    W_k(x) = dt_k running(x)/T + max_w E W_{k+1}(M_k x + m_k + N_k (xi + w)) - |w|^2 / 2,

with the same kappa, gamma and w: only -tr(H - I)/2 stands in place of -log det H / 2. So the best shift is the mean
of the optimal kernel, its own optimal initial law (p_noise e^{W_0}, normalised) is the chain's, and the loss is
T sum_k [tr(H_k - I) - log det H_k]/2 >= 0: O(dt) in total, zero for linear rewards alone (derived).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdecontrol.controls import AffineControl
from sdecontrol.errors import NoTilt, ValueBlowUp
from sdecontrol.exact.chain.base import ChainAnswers
from sdecontrol.exact.chain.reward import ClosedRewardChain
from sdecontrol.exact.pushforward import gaussian_law, gaussian_parameters, pushforward
from sdecontrol.exact.quadratic import LogQuadratic, NoiseLaw, NotPositive, covariance_root
from sdecontrol.laws import Law
from sdecontrol.moments import ChainStep
from sdecontrol.rewards import as_quadratic


class ChainExact(ChainAnswers):
    """The optimum of an affine chain with a quadratic reward and running reward. Accuracy: rounding."""

    reason = "the reward or the running reward is not quadratic"

    @cached_property
    def _rewards(self) -> tuple[LogQuadratic, LogQuadratic | None]:
        """r / T and running / T."""
        running = self.problem.running_reward
        return self._over_temperature(self.problem.reward), None if running is None else self._over_temperature(running)

    def _over_temperature(self, reward: Any) -> LogQuadratic:
        quadratic = as_quadratic(reward)
        if quadratic is None:
            raise self._no("the optimum")
        return LogQuadratic.of(quadratic, 1 / self.temperature)

    @cached_property
    def _solution(self) -> tuple[list[LogQuadratic], list[NoiseLaw]]:
        """V_0 .. V_K and the optimal noise laws of the K steps."""
        f, running = self._rewards
        values, laws = [f], []
        for k in reversed(range(len(self.chain.steps))):
            step = self.chain.steps[k]
            try:
                law = f.noise_law(step.noise)
            except NotPositive as error:
                raise ValueBlowUp(
                    f"the value is infinite at step {k} (t = {step.t:.6g}) and before: I + N' kappa N has eigenvalue "
                    f"{error.eigenvalue:.6g} there; wanted a positive matrix. Raise the temperature or lower the "
                    "positive curvature of the reward.",
                    step.t,
                ) from error
            f = f.expected(law).compose(step.matrix, step.offset)
            f = f if running is None else f + running * step.dt
            values.append(f)
            laws.append(law)
        return values[::-1], laws[::-1]

    def value(self, t: float, x: Tensor) -> Tensor:
        """T V_k(x) at a grid time t = t_k: (n, d) -> (n,). Raises BadInput at other times, ValueBlowUp."""
        return self.temperature * self._solution[0][self._index(t)](x.to(torch.float64))

    # ------------------------------------------------------------------ normaliser, laws, path KL

    @cached_property
    def _start(self) -> tuple[float, Law, float]:
        """log Z, the optimal initial law nu* proportional to p_noise e^{V_0}, and KL(nu* || p_noise)."""
        if self.problem.running_reward is None:
            self.reference.log_expectation(
                self.problem.reward, self.temperature
            )  # NoTilt names the admissible curvature
        v0, start = self._solution[0][0], self.chain.initial
        parameters = gaussian_parameters(start)
        if parameters is None:
            tilted = start.tilt(v0.as_reward(), 1.0)
            log_z = float(start.log_expectation(v0.as_reward(), 1.0))
            return log_z, tilted, v0.mean(tilted.mean, tilted.covariance) - log_z
        mean, root = parameters[0], covariance_root(parameters[1])
        try:
            law = v0.noise_law(root)
        except NotPositive as error:
            raise NoTilt(
                "E exp(rewards / temperature) under the chain is infinite: with kappa the curvature of "
                "-v(0, .)/temperature and S the start's covariance, I + S^1/2 kappa S^1/2 has eigenvalue "
                f"{error.eigenvalue:.6g}; wanted a positive matrix. Raise the temperature or lower the positive "
                "curvature of the rewards.",
                error.eigenvalue,
            ) from error
        shift = law.response @ (v0.linear - v0.curvature @ mean)
        spread = root @ law.root
        initial = gaussian_law(mean + root @ shift, spread @ spread.mT) if bool(root.any()) else start  # a point stays
        return float(v0.expected(law)(mean)), initial, float(shift @ shift) / 2 + law.variance_kl

    @property
    def log_normalizer(self) -> float:
        """log Z = log E exp((r(x_K) + sum dt running)/T) under the reference chain. Raises NoTilt."""
        return self._start[0]

    @property
    def initial(self) -> Law:
        """nu*, the optimal initial law; the same for the full problem and for mean shifts only."""
        return self._start[1]

    @cached_property
    def terminal(self) -> Law:
        """The law of x_K under the optimum: the tilt of `reference` when there is no running reward."""
        return self.marginal(self.chain.times[-1])

    def marginal(self, t: float) -> Law:
        """The law of x_k under the optimum at the grid time t = t_k."""
        return pushforward(self.initial, self._optimal_steps[: self._index(t)])

    @property
    def kl_initial(self) -> float:
        """KL(nu* || p_noise)."""
        return self._start[2]

    @cached_property
    def energy(self) -> float:
        """sum_k E KL(optimal kernel || kernel) under the optimum; each is |w|^2/2 + [tr H^-1 - d + log det H]/2."""
        means, covariances = self.chain.propagate(self.initial.mean, self.initial.covariance, self._optimal_steps)
        return sum(
            LogQuadratic.square(gain, offset, 0.5).mean(m, c) + law.variance_kl
            for (gain, offset), law, m, c in zip(self._shifts, self._solution[1], means, covariances)
        )

    @property
    def path_kl(self) -> float:
        """KL(P* || P) = kl_initial + energy."""
        return self.kl_initial + self.energy

    # ------------------------------------------------------------------ kernels and mean shifts

    @cached_property
    def _shifts(self) -> list[tuple[Tensor, Tensor]]:
        """(W, w) of the mean W x + w of the optimal noise, at every step."""
        values, laws = self._solution
        shifts = []
        for step, f, law in zip(self.chain.steps, values[1:], laws):
            gain = -law.response @ f.curvature @ step.matrix
            shifts.append((gain, law.response @ (f.linear - f.curvature @ step.offset)))
        return shifts

    @cached_property
    def _shifted_steps(self) -> list[ChainStep]:
        """The steps under the best mean shift."""
        return [
            ChainStep(s.t, s.dt, s.matrix + s.noise @ gain, s.offset + s.noise @ offset, s.noise)
            for s, (gain, offset) in zip(self.chain.steps, self._shifts)
        ]

    @cached_property
    def _optimal_steps(self) -> list[ChainStep]:
        return [
            ChainStep(s.t, s.dt, s.matrix, s.offset, s.noise @ law.root)
            for s, law in zip(self._shifted_steps, self._solution[1])
        ]

    def kernel(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The optimal kernel of step k from x (n,d): N(mean (n,d), covariance (d,d))."""
        step = self._optimal_steps[k]
        return x.to(torch.float64) @ step.matrix.mT + step.offset, step.noise @ step.noise.mT

    @cached_property
    def control(self) -> AffineControl:
        """The best mean shift as a control at the grid times, sqrt(dt) u = w: the mean of the optimal kernel."""
        scaled = [(gain / s.dt**0.5, offset / s.dt**0.5) for s, (gain, offset) in zip(self.chain.steps, self._shifts)]
        return AffineControl.on_grid(self.chain.times, [g for g, _ in scaled], [b for _, b in scaled])

    @property
    def loss(self) -> float:
        """optimum - objective = T sum_k [tr(H_k - I) - log det H_k]/2, the price of a fixed variance."""
        return self.temperature * sum(law.fixed_variance_loss for law in self._solution[1])

    @property
    def objective(self) -> float:
        """E reward - T KL of the best mean shift `control` started from `initial`: the best of all such pairs."""
        return self.optimum - self.loss

    @cached_property
    def control_terminal(self) -> Law:
        """The law of x_K under `control` started from `initial`; wider than `terminal` by the variances not tilted."""
        return pushforward(self.initial, self._shifted_steps)

    # ------------------------------------------------------------------ when the initial law is kept

    @cached_property
    def untilted_terminal(self) -> Law:
        """The law of x_K under the optimal kernels when nu = p_noise is kept: biased, not `terminal`."""
        return pushforward(self.chain.initial, self._optimal_steps)

    @property
    def objective_untilted(self) -> float:
        """The largest objective with nu = p_noise kept: T E_{p_noise} V_0 = optimum - T KL(p_noise || nu*)."""
        start = self.chain.initial
        return self.temperature * self._solution[0][0].mean(start.mean, start.covariance)

    @property
    def control_objective_untilted(self) -> float:
        """The largest objective over mean shifts with nu = p_noise kept, reached by `control`."""
        return self.objective_untilted - self.loss


def exact_chain(problem: Any, kernel: Any, grid: Any) -> ChainAnswers:
    """The answers about the chain: `ChainExact` for quadratic rewards, else `ClosedRewardChain`."""
    running = problem.running_reward
    quadratic = as_quadratic(problem.reward) and (running is None or as_quadratic(running))
    return (ChainExact if quadratic else ClosedRewardChain)(problem, kernel, grid)


__all__ = ["ChainExact", "exact_chain"]
