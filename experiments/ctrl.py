"""Conditioning as control on a line: what the strength samples, what a scaled drift samples, and what data buy.

Three overlapping Gaussians, VP noising, started from a point (CTRL's setting); the label is the component. In one
dimension every target p(y|x)^g p_pre is a quadrature, as is every value, so a sampled law is compared with the exact
one. Learned classifiers, the CFG loss, tuned on held-out pairs, and a control trained by back-propagation (CTRL's
Algorithm 2) are compared by the total variation of the law that comes out. `experiments.ctrl_labels` has two labels
learned apart, and a continuous one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import sdecontrol as sc
from experiments.record import resumed
from sdecontrol import conditioning

MODES = sc.GaussianMixture([0.4, 0.35, 0.25], [[-1.5], [0.0], [1.4]], [[[0.35]], [[0.25]], [[0.3]]])
PROCESS = sc.ReverseProcess(sc.VP(0.1, 8.0), MODES, sc.Dirac([0.3]))
GRID, KERNEL, PATHS = sc.TimeGrid.log_snr(600), sc.Ancestral(), 10_000
STRENGTHS, LABEL, BINS = [0.5, 1.0, 4.0, 10.0], 1, 20
SIZES, SEEDS, FEW = [30, 100, 300, 1_000, 3_000, 10_000], 24, 2
RIVALS = ("quadratic logits", "network", "CFG loss")
RATES, ITERATIONS = (5e-3, 2e-2, 5e-2), (300, 1_000, 2_000)  # what the CFG loss is tuned over
NARROW = 3.0  # spacings of LINE below which the posterior is narrower than the rule: there the label is read at y/alpha
LINE = torch.linspace(-6.0, 6.0, 801, dtype=torch.float64)[:, None]
Model = TypeVar("Model", bound=nn.Module)
TRUTH = MODES.log_responsibilities(LINE).exp()
REFERENCE = sc.Problem(PROCESS, sc.Linear([1.0]), 1.0).exact.reference


class LineValue:
    """u* of a reward on the line: amplitude (alpha/h) (E_tilted[X | y] - E[X | y]) by quadrature, splined over y."""

    def __init__(self, reward: Any):
        self.log_joint = MODES.log_prob(LINE), (MODES.log_prob(LINE) + reward(LINE)).detach()
        self.reward, self.nodes, self.kept = reward, np.linspace(-6.0, 6.0, 201), {}

    def _table(self, t: float) -> np.ndarray:
        s = PROCESS.noise_level(t)
        a, h = PROCESS.schedule.alpha(s), PROCESS.schedule.h(s)
        y = torch.as_tensor(self.nodes)[:, None]
        if h**0.5 / a < NARROW * float(LINE[1, 0] - LINE[0, 0]):
            return (PROCESS.amplitude(t) / a * self.reward.gradient(y / a)[:, 0]).numpy()
        kernel = -((y - a * LINE[:, 0]) ** 2) / (2 * h)
        plain, tilted = ((kernel + log_p).softmax(1) @ LINE[:, 0] for log_p in self.log_joint)
        return (PROCESS.amplitude(t) * a / h * (tilted - plain)).numpy()

    def control(self, t: float, x: Tensor) -> Tensor:
        if t not in self.kept:
            self.kept[t] = self._table(t)
        return torch.as_tensor(np.interp(x[:, 0].numpy(), self.nodes, self.kept[t]))[:, None]


def target(reward: Any) -> Tensor:
    """Masses of e^reward p_pre at the nodes of LINE: (801,)."""
    return (REFERENCE.log_prob(LINE) + reward(LINE)).detach().softmax(0)


def sample(control: Any, problem: sc.Problem, seed: int = 1, n: int = PATHS, grid: Any = GRID) -> Tensor:
    """Terminal states (n,)."""
    path = sc.simulate(problem.process, control, grid=grid, kernel=KERNEL, n=n, noise=sc.Noise(seed), keep="ends")
    return path.terminal[:, 0]


def steered(reward: Any, **options: Any) -> Tensor:
    """Samples of the optimum of a reward on the line."""
    problem = sc.Problem(PROCESS, reward, 1.0)
    control = sc.guidance.doob(problem, LineValue(reward), form="lookahead")
    return sample(control, problem, **options)


def bins_of(masses: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Edges of BINS bins of about equal mass and their masses."""
    below = masses.cumsum(0).numpy()
    inner = np.unique(np.searchsorted(below, np.arange(1, BINS) / BINS))
    edges = (LINE[:, 0].numpy()[inner] + LINE[:, 0].numpy()[inner + 1]) / 2
    return edges, np.diff(np.concatenate([[0.0], below[inner], [1.0]]))


def tv(x: Tensor, masses: Tensor) -> float:
    """Total variation over the bins; sampling alone leaves about sqrt(BINS / (2 pi n)) of it."""
    edges, expected = bins_of(masses)
    found = np.bincount(np.searchsorted(edges, x.numpy()), minlength=len(expected)) / len(x)
    return float(np.abs(found - expected).sum() / 2)


def against(x: Tensor, masses: Tensor) -> dict[str, float]:
    """z-scores of mean and variance against a law at the nodes, chi-square over its bins, and the total variation."""
    mean = float(masses @ LINE[:, 0])
    variance = float(masses @ (LINE[:, 0] - mean) ** 2)
    edges, expected = bins_of(masses)
    counts = np.bincount(np.searchsorted(edges, x.numpy()), minlength=len(expected))
    chi = float((((counts - len(x) * expected) ** 2) / (len(x) * expected)).sum())
    return {
        "mean": mean, "variance": variance, "sampled_mean": float(x.mean()), "sampled_variance": float(x.var()),
        "z_mean": sc.Estimate.mean(x).z(mean), "z_variance": sc.Estimate.mean((x - mean) ** 2).z(variance),
        "chi_square_per_degree": chi / (len(expected) - 1), "tv": tv(x, masses),
    }  # fmt: skip


def strengths() -> list[dict[str, Any]]:
    """The sampled law at each strength, under the exact control and under the scaled drift."""
    one = sc.Problem(PROCESS, sc.ClassPosterior(MODES, LABEL), 1.0)
    rows = []
    for strength in STRENGTHS:
        reward = sc.ClassPosterior(MODES, LABEL, strength)
        masses = target(reward)
        scaled = conditioning.scaled_drift(one, strength)
        found = {"power": steered(reward), "scaled": sample(scaled, one)}
        rows.append({"strength": strength, **{name: against(x, masses) for name, x in found.items()},
                     **shown(found, masses)})  # fmt: skip
    return rows


def density(masses: Tensor) -> list[float]:
    """A law at the nodes as a density at every fourth of them."""
    return (masses / float(LINE[1, 0] - LINE[0, 0]))[::4].tolist()


def shown(samples: dict[str, Tensor], masses: Tensor, width: float = 0.1) -> dict[str, Any]:
    """What a figure needs: histograms of samples and the density of their target."""
    edges = np.arange(-3.5, 3.5 + width / 2, width)
    histograms = {name: (np.histogram(x.numpy(), edges)[0] / len(x) / width).tolist() for name, x in samples.items()}
    centres = ((edges[1:] + edges[:-1]) / 2).tolist()
    return {"density": histograms, "centres": centres, "target": density(masses), "nodes": LINE[::4, 0].tolist()}


def pairs(n: int, seed: int) -> conditioning.Pairs:
    """n draws of the data with their components."""
    rng = np.random.default_rng([n, seed])
    y = rng.choice(3, size=n, p=MODES.weights.numpy())
    x = MODES.means.numpy()[y, 0] + np.sqrt(MODES.covariances.numpy()[y, 0, 0]) * rng.standard_normal(n)
    return conditioning.Pairs(torch.tensor(x)[:, None], torch.tensor(y), 3, empty=True)


class Features(nn.Module):
    """Logits linear in features of x: (1, u, u^2), the truth, or (1, u^2) alone, which cannot tell left from right."""

    def __init__(self, even: bool):
        super().__init__()
        self.even, self.layer = even, conditioning.mlp(1 if even else 2, 3, hidden=0, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        u = x / 1.3  # the spread of the data: the features are about orthonormal, and the fit well conditioned
        square = (u.square() - 1) / 2**0.5
        return self.layer(square if self.even else torch.cat([u, square], 1))


CLASSES = {"even logits": lambda: Features(True), "quadratic logits": lambda: Features(False),
           "network": lambda: conditioning.mlp(1, 3, width=32, hidden=1)}  # fmt: skip


def by_lbfgs(model: Model, objective: Callable[[], Tensor], steps: int = 100) -> Model:
    """The minimiser of an objective of the model's parameters."""
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimiser.step(closure)
    return model


def best_in_class(make: Any) -> conditioning.Classifier:
    """The least expected cross-entropy over the data law itself, by quadrature: infinitely many pairs."""
    classifier, weights = conditioning.Classifier(make(), 3), MODES.log_prob(LINE).softmax(0)[:, None] * TRUTH
    return by_lbfgs(classifier, lambda: -(weights * classifier.log_prob(LINE)).sum(), 400)


def learned(make: Any, offline: conditioning.Pairs, steps: int | None = None) -> conditioning.Classifier:
    """Maximum likelihood: 200 steps of Adam for a network; LBFGS for logits linear in features, or `steps` of Adam."""
    classifier = conditioning.Classifier(make(), 3)
    if isinstance(classifier.network, Features) and steps is None:
        return by_lbfgs(classifier, lambda: classifier.loss(offline))
    adam = torch.optim.Adam(classifier.parameters(), lr=0.05)
    conditioning.fit_classifier(classifier, offline, steps=steps or 200, optimiser=adam, decay=sc.finetune.cosine,
                                progress=False)  # fmt: skip
    return classifier


def distance(p: Tensor, q: Tensor) -> float:
    """E |p(.|x) - q(.|x)|_1^2 over the data, probabilities (801, 3)."""
    return float(MODES.log_prob(LINE).softmax(0) @ (p - q).abs().sum(1).square())


def probabilities(classifier: conditioning.Classifier) -> Tensor:
    with torch.no_grad():
        return classifier.log_prob(LINE).exp()


def error_split() -> dict[str, Any]:
    """(7) in parts: best in class against the truth, n pairs against the best in class, few steps against many."""
    found: dict[str, Any] = {"sizes": SIZES, "steps": [10, 30, 100, 200]}
    for name, make in CLASSES.items():
        best = probabilities(best_in_class(make))
        total, statistical = [], []
        for n in SIZES:
            fits = [probabilities(learned(make, pairs(n, seed))) for seed in range(SEEDS if name != "network" else FEW)]
            total.append(sc.Estimate.mean([distance(p, TRUTH) for p in fits]).to_dict())
            statistical.append(sc.Estimate.mean([distance(p, best) for p in fits]).to_dict())
        done = probabilities(learned(make, pairs(1_000, 0), 400 if name == "network" else None))
        optimisation = [distance(probabilities(learned(make, pairs(1_000, 0), k)), done) for k in found["steps"]]
        slope = float(np.polyfit(np.log(SIZES[1:]), np.log([e["value"] for e in statistical[1:]]), 1)[0])
        found[name] = {"misspecification": distance(best, TRUTH), "total": total, "statistical": statistical,
                       "slope": slope, "optimisation": optimisation}  # fmt: skip
    return found


def cfg_samples(model: conditioning.ConditionalNoise, strength: float, seed: int) -> Tensor:
    problem = sc.Problem(PROCESS, sc.Linear([0.0]), 1.0)
    control = sc.guidance.cfg(problem, model.model(LABEL), strength)
    with torch.no_grad():
        return sample(control, problem, seed, n=5_000, grid=sc.TimeGrid.log_snr(100))


def efficiency() -> dict[str, Any]:
    """TV of the output to the true target as the offline set grows: CTRL's classifier, and the CFG loss."""
    sizes = SIZES[1::2]
    floor = (BINS / (2 * np.pi * 5_000)) ** 0.5
    rows: dict[str, list[Any]] = {f"{name}, {g:g}": [] for name in RIVALS for g in (1.0, 4.0)}
    chosen = []
    for n in sizes:
        fits = [fitted_cfg(n, seed) for seed in range(FEW)]
        chosen.append([best for _, best in fits])
        for name, found in {**classifier_laws(n), **cfg_laws([model for model, _ in fits])}.items():
            rows[name].append(sc.Estimate.mean(found).to_dict())
    return {"sizes": sizes, "rates": RATES, "iterations": ITERATIONS, "chosen": chosen, "floor": floor, **rows}


def classifier_laws(n: int) -> dict[str, list[float]]:
    """TV of p^g p_pre to the truth for classifiers of n pairs, by quadrature: one a seed."""
    found: dict[str, list[float]] = {}
    for name in ("quadratic logits", "network"):
        fits = [learned(CLASSES[name], pairs(n, seed)) for seed in range(2 * FEW)]
        for g in (1.0, 4.0):
            true = target(sc.ClassPosterior(MODES, LABEL, g))
            found[f"{name}, {g:g}"] = [binned_tv(target(fit.reward(LABEL, g)), true) for fit in fits]
    return found


def cfg_laws(models: list[conditioning.ConditionalNoise]) -> dict[str, list[float]]:
    """The same for samples under CFG with networks fitted by the CFG loss."""
    found: dict[str, list[float]] = {}
    for g in (1.0, 4.0):
        true = target(sc.ClassPosterior(MODES, LABEL, g))
        found[f"CFG loss, {g:g}"] = [tv(cfg_samples(m, g, seed), true) for seed, m in enumerate(models)]
    return found


def binned_tv(law: Tensor, masses: Tensor) -> float:
    """Total variation of two laws at the nodes over the bins of the second."""
    edges, expected = bins_of(masses)
    place = torch.as_tensor(np.searchsorted(edges, LINE[:, 0].numpy()))
    found = torch.zeros(len(expected), dtype=torch.float64).index_add(0, place, law).numpy()
    return float(np.abs(found - expected).sum() / 2)


def fitted_cfg(n: int, seed: int) -> tuple[conditioning.ConditionalNoise, tuple[float, int]]:
    """The CFG loss on n pairs: rate and iterations by the loss of a held-out fifth, then all pairs."""
    offline = pairs(n, seed)
    train, held = offline.split(0.2)
    losses = {
        (rate, steps): held_out(cfg_fit(train, seed, rate, steps), held) for rate in RATES for steps in ITERATIONS
    }
    best = min(losses, key=losses.__getitem__)
    print(f"  CFG loss, {n} pairs, seed {seed}: rate {best[0]:g}, {best[1]} iterations", flush=True)
    return cfg_fit(offline, seed, *best), best


def cfg_fit(offline: conditioning.Pairs, seed: int, rate: float, steps: int) -> conditioning.ConditionalNoise:
    model = conditioning.ConditionalNoise(PROCESS, 3, width=32, seed=seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    conditioning.fit_conditional(model, offline, steps=steps, n=256, optimiser=optimiser, levels=24,
                                 decay=sc.finetune.cosine, noise=sc.Noise(seed), progress=False)  # fmt: skip
    return model


def held_out(model: conditioning.ConditionalNoise, held: conditioning.Pairs, rows: int = 16_384) -> float:
    """The CFG loss on held-out pairs, each at many levels."""
    with torch.no_grad():
        return float(model.loss(held[torch.arange(rows) % len(held)], model.levels(24), sc.Noise(99)))


def confusion() -> dict[str, Any]:
    """Rows the label asked for, columns the component that the exact posterior finds most probable."""
    found = {}
    for strength in STRENGTHS:
        rows = []
        for label in range(3):
            x = steered(sc.ClassPosterior(MODES, label, strength), n=2_000, grid=sc.TimeGrid.log_snr(60))
            seen = MODES.log_responsibilities(x[:, None]).argmax(1)
            rows.append((torch.bincount(seen, minlength=3) / len(x)).tolist())
        found[f"{strength:g}"] = {"matrix": rows, "accuracy": float(np.mean(np.diag(np.array(rows))))}
    return found


def scores() -> dict[str, Any]:
    """Gaussian data and label: the variance and mean of the power, of the scaled drift, and of two-strength CFG."""
    schedule, start = sc.VP(), sc.Gaussian([0.0], [[1.0]])
    data, posterior = sc.Gaussian([0.0], [[1.0]]), sc.Gaussian([1.2], [[0.2]])  # label 1.5 with noise 1/2
    strengths = np.linspace(0.0, 10.0, 41).tolist()
    rows = []
    for g in strengths:
        law = conditioning.combined_gaussian(schedule, [data, posterior], [1 - g, g], start)
        rows.append({"strength": g, "mean": float(law.mean), "variance": float(law.covariance),
                     "tilt_mean": 1.5 * g / (g + 0.25), "tilt_variance": 0.25 / (g + 0.25)})  # fmt: skip
    both = sc.Gaussian([1.5 * 8 / 9], [[1 / 9]])  # a second label of the same kind
    two = conditioning.combined_gaussian(schedule, [data, posterior, both], [1 - 2.0, 2.0 - 3.0, 3.0], start)
    precision = (1 - 2) / 1.0 + (2 - 3) / 0.2 + 3 * 9
    pull = (2 - 3) * 1.2 / 0.2 + 3 * 12.0
    return {"rows": rows, "two_strengths": {"mean": float(two.mean), "variance": float(two.covariance),
            "tilt_mean": pull / precision, "tilt_variance": 1 / precision}}  # fmt: skip


def planned() -> dict[str, Any]:
    """Algorithm 2: a control trained by back-propagation through the paths of a learned, calibrated classifier."""
    offline, held = pairs(3_000, 1).split(0.2)
    classifier = learned(CLASSES["quadratic logits"], offline)
    temperature = classifier.calibrate(held)
    reward = classifier.reward(LABEL, 4.0)
    problem = sc.Problem(PROCESS, reward, 1.0)
    grid = sc.TimeGrid.log_snr(25)
    family = sc.finetune.DenoiserFamily(1, width=48, blocks=2, dtype=torch.float64)
    control, record_of = sc.fit(problem, family, sc.finetune.RelativeEntropy(), steps=80, n=128, rate=1e-2, grid=grid,
                                kernel=KERNEL, progress=False)  # fmt: skip
    with torch.no_grad():
        x = sample(control, problem, n=5_000, grid=grid)
    exact = steered(reward, n=5_000, grid=grid)
    masses, truth = target(reward), target(sc.ClassPosterior(MODES, LABEL, 4.0))
    return {"temperature": temperature, "iterations": record_of.iterations, "tv_learned_target": tv(x, masses),
            "tv_true_target": tv(x, truth), "tv_exact_control_same_chain": tv(exact, masses),
            "tv_no_control": tv(sample(None, problem, n=5_000, grid=grid), truth)}  # fmt: skip


def noised() -> dict[str, Any]:
    """Guidance at strength 1 by a classifier trained on noised pairs, and by the exact one."""
    problem = sc.Problem(PROCESS, sc.ClassPosterior(MODES, LABEL), 1.0)
    masses, grid = target(sc.ClassPosterior(MODES, LABEL)), sc.TimeGrid.log_snr(60)
    model = conditioning.NoisedClassifier(PROCESS.schedule, 1, 3)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    conditioning.fit_noised(model, pairs(10_000, 2), steps=400, n=256, optimiser=optimiser, decay=sc.finetune.cosine,
                            progress=False)  # fmt: skip
    laws = {"trained": model.of(LABEL), "exact": conditioning.exact_classifier(problem)}
    return {name: tv(sample(sc.guidance.classifier(problem, c), problem, n=5_000, grid=grid), masses)
            for name, c in laws.items()}  # fmt: skip


def finite() -> dict[str, Any]:
    """A lazy random walk on 31 states with a label: TV of the scaled kernels to the power, exact."""
    states = np.arange(31)
    kernel = 0.5 * np.eye(31) + 0.25 * (np.eye(31, k=1) + np.eye(31, k=-1))
    kernel[0, 0] = kernel[-1, -1] = 0.75
    start = np.exp(-((states - 15.0) ** 2) / 18)
    chain = conditioning.FiniteChain.of(start / start.sum(), np.repeat(kernel[None], 40, 0))
    log_p = -np.logaddexp(0.0, -(states - 20) / 2.0)  # logistic label
    rows = []
    for strength in STRENGTHS:
        power = chain.conditioned(strength * log_p)
        apart = np.abs(power.marginals()[-1] - chain.scaled(log_p, strength).marginals()[-1]).sum() / 2
        rows.append({"strength": strength, "tv_scaled": float(apart), "path_kl": sum(power.path_kl(chain))})
    return {"rows": rows}


PARTS = {"paths": lambda: PATHS, "steps": lambda: len(GRID.resolve(PROCESS).times) - 1, "strengths": strengths,
         "scores": scores, "finite": finite, "confusion": confusion, "error_split": error_split, "noised": noised,
         "planned": planned, "efficiency": efficiency}  # fmt: skip


if __name__ == "__main__":
    resumed("ctrl", PARTS)
