"""Why weight standardization may do worse than it should: checks on a model, its optimizer and its checkpoints."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import Optimizer

from wsbench.analysis.shares import scale_of, standardized_layers
from wsbench.norms import NormalizedLayer, NormSpec
from wsbench.norms.facts import facts_of
from wsbench.norms.guard import KEY
from wsbench.norms.layers import NORMALIZED, rows_of
from wsbench.norms.recognize import is_norm
from wsbench.norms.watch import Watched, watch

#: below this share of its undamped size a filter counts as damped by eps
LEAST_RETAINED = 0.99
#: a filter whose sigma is below this share of its largest value is constant, as far as float32 can tell
CONSTANT = 1e-6
#: an optimizer step moves a layer's centred weight by a share of its length between these (the least at the initial
#: learning rate), or its rate is off the scale
LEAST_MOVE, MOST_MOVE = 1e-6, 0.1


@dataclass(frozen=True)
class Update:
    """What an optimizer does to a parameter in a step."""

    direction: Tensor
    rate: float
    """It subtracts ``rate`` times ``direction``, weight decay aside."""
    initial_rate: float
    """The rate before a schedule lowered it."""


@dataclass(frozen=True)
class Finding:
    """One thing that may be why."""

    layer: str
    what: str
    remedy: str


@dataclass(frozen=True)
class Check:
    """A check and what it found."""

    name: str
    findings: tuple[Finding, ...] = ()
    not_checked: str = ""
    """Why it could not be made, and what it needs; empty if it was made."""


@dataclass(frozen=True)
class Diagnosis:
    """All checks of a model."""

    checks: tuple[Check, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Those of all checks."""
        return tuple(finding for check in self.checks for finding in check.findings)


@dataclass(frozen=True)
class Subject:
    """What is known about a model; whatever is left out, the checks that need it are not made."""

    model: nn.Module
    example: Any = None
    """What to call the model with, as for :func:`~wsbench.norms.normalize`."""
    micro_batch: int | None = None
    """Samples that batch statistics see: of one device, of all devices under SyncBN."""
    checkpoint: Mapping[str, Any] | None = None
    """What the weights were loaded from."""
    spec: NormSpec | None = None
    """What the model is meant to be; None: what its layers say."""
    initialized_from: Mapping[str, Any] | None = None
    """What training started from; empty for a run that started from nothing."""
    updates: Mapping[str, Update] | None = None
    """Name of a parameter to what the last optimizer step did to it; :func:`updates_of`."""
    deliberate: Collection[str] = ()
    """Names of layers that are standardized without a norm behind them on purpose (pre-activation networks)."""


def updates_of(optimizer: Mapping[str, Any], names: list[str]) -> dict[str, Update]:
    """What the last step of SGD with momentum, Adam or AdamW did, from the optimizer's state.

    Args:
        optimizer: its ``state_dict()``.
        names: of its parameters, in its order.

    Returns:
        Parameters without such a state are missing.
    """
    rates = {i: group for group in optimizer["param_groups"] for i in group["params"]}
    updates = {}
    for i, state in optimizer["state"].items():
        group = rates[i]
        rate = float(group["lr"])
        initial = float(group.get("initial_lr", rate))  # where there is a schedule
        if isinstance(state.get("momentum_buffer"), Tensor):
            updates[names[i]] = Update(state["momentum_buffer"], rate, initial)
        elif "exp_avg" in state and float(state["step"]) > 0:
            step, (beta1, beta2) = float(state["step"]), group["betas"]
            root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"]
            updates[names[i]] = Update(state["exp_avg"] / (1 - beta1**step) / root, rate, initial)
    return updates


def updates_of_optimizer(optimizer: Optimizer, model: nn.Module) -> dict[str, Update]:
    """:func:`updates_of` of a live optimizer, with the model's names."""
    names = {id(p): name for name, p in model.named_parameters()}
    ordered = [names.get(id(p), "") for group in optimizer.param_groups for p in group["params"]]
    return updates_of(optimizer.state_dict(), ordered)


class _Layers:
    """The layers of a subject, found once."""

    def __init__(self, subject: Subject) -> None:
        self.modules = dict(subject.model.named_modules())
        self.names = {module: name for name, module in self.modules.items()}
        self.normalized = {n: m for n, m in self.modules.items() if isinstance(m, NormalizedLayer)}
        self.standardized = standardized_layers(subject.model)
        self.norms: dict[str, nn.Module] = {n: m for n, m in self.modules.items() if is_norm(m)}
        self.seen: Watched | None = None
        if subject.example is not None:
            plain: tuple[type[nn.Module], ...] = tuple(NORMALIZED)
            weighted = [m for m in self.modules.values() if isinstance(m, plain)]
            self.seen = watch(subject.model, subject.example, weighted, list(self.norms.values()))

    def rows(self, layer: NormalizedLayer) -> Tensor:
        """(O, I) in float64."""
        return rows_of(layer, layer.weight.detach()).double()


_NO_EXAMPLE = "needs an example, to see which outputs a norm consumes"


def _no_norm_behind(subject: Subject, layers: _Layers) -> Check:
    name = "standardized, and no norm after it"
    if layers.seen is None:
        return Check(name, not_checked=_NO_EXAMPLE)
    seen = layers.seen
    return Check(name, tuple(
        Finding(
            n, "its output goes into no normalization layer, so nothing undoes the scale that standardization gives it "
            f"(sqrt(fan-in) = {layers.rows(m).shape[1] ** 0.5:.0f} times its input's for white noise)",
            f"leave it plain: normalize(model, spec, example, exclude=['{n}']), or put a norm after it",
        )
        for n, m in layers.normalized.items()
        if m in seen.reached and m not in seen.consumers and n not in subject.deliberate
    ))  # fmt: skip


def _bias_before_norm(subject: Subject, layers: _Layers) -> Check:
    name = "bias in front of a norm"
    if layers.seen is None:
        return Check(name, not_checked=_NO_EXAMPLE)
    findings = []
    for n, m in layers.normalized.items():
        norm = layers.seen.consumers.get(m)
        if m.bias is None or norm is None:
            continue
        absorbed = facts_of(norm).per_channel or isinstance(norm, _BatchNorm | _InstanceNorm)
        what = "which subtracts it again" if absorbed else "which subtracts no more than its group's mean of it"
        findings.append(Finding(
            n, f"its bias goes into '{layers.names[norm]}' ({type(norm).__name__}), {what}",
            "build it with bias=False; the norm has a bias of its own",
        ))  # fmt: skip
    return Check(name, tuple(findings))


def _started_from_other_weights(subject: Subject, layers: _Layers) -> Check:
    name = "initialized from weights of another normalization"
    if subject.initialized_from is None:
        return Check(name, not_checked="needs the checkpoint that training started from (--init_from)")
    if not subject.initialized_from:
        return Check(name)
    stated = subject.initialized_from.get(KEY)
    wanted = _spec(subject, layers)
    if stated is None:
        return Check(name, (Finding(
            "all", "training started from weights that do not say their normalization; plain weights of a BN or GN "
            "network lose the scale of every filter under standardization",
            "start from a checkpoint of the same spec, or name it: SPEC=CHECKPOINT",
        ),))  # fmt: skip
    other = NormSpec.parse(stated)
    if wanted is None or (other.weight, other.variant) == (wanted.weight, wanted.variant):
        return Check(name)
    return Check(name, (Finding(
        "all", f"training started from weights of '{other}', the model is '{wanted}': the function they had is lost",
        f"start from a checkpoint of '{wanted}' (the paper pretrains its backbones with WS), or from nothing",
    ),))  # fmt: skip


def _spec(subject: Subject, layers: _Layers) -> NormSpec | None:
    if subject.spec is not None:
        return subject.spec
    return next((m.spec for m in layers.normalized.values()), None)


def _spec_differs(subject: Subject, layers: _Layers) -> Check:
    name = "spec of the model and of its checkpoint"
    findings = []
    wanted = _spec(subject, layers)
    kept = {(m.spec.weight, m.spec.variant, m.spec.semantics): (n, m.spec) for n, m in layers.normalized.items()}
    if len(kept) > 1:
        n, spec = list(kept.values())[1]
        findings.append(Finding(n, f"it has '{spec}', other layers '{next(iter(kept.values()))[1]}'",
                                "convert the whole model to one spec: normalize(model, spec, example)"))  # fmt: skip
    if subject.checkpoint is None:
        if findings:
            return Check(name, tuple(findings))
        return Check(name, not_checked="needs the checkpoint that the weights come from")
    stamped = subject.checkpoint.get(KEY)
    if stamped is None:
        remedy = "save it with stamp_spec(checkpoint, spec), or load it as SPEC=CHECKPOINT"
        findings.append(
            Finding("all", "the checkpoint does not say its normalization, and weights cannot tell", remedy)
        )
    elif wanted is not None and NormSpec.parse(stamped) != wanted:
        findings.append(Finding("all", f"the weights were trained with '{stamped}', the model is '{wanted}'",
                                f"convert the model to '{stamped}': --norm {stamped}"))  # fmt: skip
    elif wanted is None and NormSpec.parse(stamped).weight is not None:
        findings.append(Finding("all", f"the weights were trained with '{stamped}', and no layer has a weight "
                                "normalization", f"normalize(model, '{stamped}', example) before loading"))  # fmt: skip
    return Check(name, tuple(findings))


def _constant(layer: NormalizedLayer, rows: Tensor) -> Tensor:
    """Which filters have no direction to standardize, (O,) bool."""
    about = rows if layer.spec.variant == "do" else rows - rows.mean(1, keepdim=True)
    return about.square().mean(1).sqrt() <= CONSTANT * rows.abs().amax(1)


def _constant_filters(subject: Subject, layers: _Layers) -> Check:
    findings = []
    for n, m in layers.standardized.items():
        rows = layers.rows(m)
        which = _constant(m, rows).nonzero().flatten().tolist()
        if which:
            what = "zero" if m.spec.variant == "do" else "constant"
            findings.append(Finding(
                n, f"{len(which)} of {len(rows)} filters are {what} (channels {_few(which)}): they compute nothing, "
                "and their gradient is divided by eps",
                "initialize the layer at random (nn.init.kaiming_normal_), not by a constant; with ws zero-initialize "
                "the gain of the norm after it instead",
            ))  # fmt: skip
    return Check("constant filters", tuple(findings))


def _eps_damping(subject: Subject, layers: _Layers) -> Check:
    findings = []
    for n, m in layers.standardized.items():
        if m.spec.variant == "mo":
            continue
        sigma, divisor = scale_of(m)
        retained = sigma / divisor
        damped = (retained < LEAST_RETAINED) & ~_constant(m, layers.rows(m))
        if damped.any():
            findings.append(Finding(
                n, f"{int(damped.sum())} of {len(sigma)} filters are damped by eps, down to "
                f"{float(retained[damped].min()):.3f} of unit deviation (sigma {float(sigma[damped].min()):.1e})",
                "initialize these filters larger, lower the weight decay on them, or use @bit, whose eps is 1e-10",
            ))  # fmt: skip
    return Check("filters damped by eps", tuple(findings))


def _rate_off_scale(subject: Subject, layers: _Layers) -> Check:
    name = "learning rate against the scale of the weights"
    if subject.updates is None:
        return Check(name, not_checked="needs the optimizer's state (a run's last.ckpt or best.ckpt, or an optimizer)")
    findings = []
    for n, m in layers.standardized.items():
        update = subject.updates.get(f"{n}.weight")
        if update is None:
            continue
        rows = layers.rows(m)
        step = rows_of(m, update.direction).to(rows)
        if m.spec.variant != "do":
            rows, step = (t - t.mean(1, keepdim=True) for t in (rows, step))
        unit = float(step.norm() / rows.norm().clamp_min(1e-30))
        ratio = "only its ratio to the squared length of the weights counts for a standardized layer"
        if unit * update.rate > MOST_MOVE:
            findings.append(Finding(
                n, f"the last optimizer step moved its centred weight by {unit * update.rate:.2f} of its length",
                f"lower the learning rate, warm it up, or initialize the weights larger: {ratio}",
            ))  # fmt: skip
        elif unit * update.initial_rate < LEAST_MOVE:
            findings.append(Finding(
                n, f"even the initial learning rate {update.initial_rate:g} would have moved its centred weight by no "
                f"more than {unit * update.initial_rate:.1e} of its length in the last optimizer step",
                f"raise the learning rate, or initialize the weights smaller: {ratio}",
            ))  # fmt: skip
    return Check(name, tuple(findings))


def _batch_of_one(subject: Subject, layers: _Layers) -> Check:
    name = "batch statistics of one sample"
    batch_norms = {n: m for n, m in layers.norms.items() if isinstance(m, _BatchNorm)}
    if subject.micro_batch is None and batch_norms:
        return Check(name, not_checked="needs the samples that statistics are over (--micro_batch, or a run's record)")
    if subject.micro_batch != 1:
        return Check(name)
    findings = []
    for n in batch_norms:
        shape = None if layers.seen is None else layers.seen.inputs.get(batch_norms[n])
        values = "" if shape is None else f", {shape[2:].numel()} values a channel"
        findings.append(Finding(
            n, f"its statistics are those of one sample in training{values}, and averages of them in evaluation",
            "use gn+ws, or synchronize BN over devices (--trainer.sync_batchnorm true), or freeze it (frozenbn)",
        ))  # fmt: skip
    return Check(name, tuple(findings))


CHECKS: tuple[Callable[[Subject, _Layers], Check], ...] = (
    _no_norm_behind, _bias_before_norm, _started_from_other_weights, _spec_differs, _constant_filters, _eps_damping,
    _rate_off_scale, _batch_of_one,
)  # fmt: skip


def diagnose(subject: Subject) -> Diagnosis:
    """Run all checks.

    >>> diagnose(Subject(model, example=images, micro_batch=1)).findings
    """
    layers = _Layers(subject)
    return Diagnosis(tuple(check(subject, layers) for check in CHECKS))


def _few(numbers: list[int], most: int = 6) -> str:
    return ", ".join(map(str, numbers[:most])) + (" ..." if len(numbers) > most else "")
