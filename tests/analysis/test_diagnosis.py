"""Each check of the diagnosis on a model that has the defect, and on one that has not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from wsbench.analysis import Check, Subject, diagnose, updates_of_optimizer
from wsbench.analysis.diagnosis import Update
from wsbench.norms import NormSpec, normalize, normalized

IMAGES = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.norm(self.conv(x)).relu())
        return out


def model(spec: str = "gn+ws", change: Callable[[Net], Any] = lambda net: None) -> Net:
    torch.manual_seed(0)
    net = Net()
    change(net)
    normalize(net, spec, IMAGES)
    return net


def check(name: str, subject: Subject) -> Check:
    (found,) = (c for c in diagnose(subject).checks if c.name == name)
    return found


def healthy(**changes: Any) -> Subject:
    known = {
        "model": model(), "example": IMAGES, "micro_batch": 1, "checkpoint": {"norm_spec": "gn+ws"},
        "initialized_from": {}, "updates": {"conv.weight": Update(torch.randn(8, 3, 3, 3), 1e-3, 1e-3)},
    }  # fmt: skip
    return Subject(**(known | changes))


def test_a_healthy_model_has_no_findings_and_all_checks_are_made() -> None:
    found = diagnose(healthy())
    assert found.findings == ()
    assert [c.name for c in found.checks if c.not_checked] == []
    assert len(found.checks) == 8


def test_what_is_not_known_is_not_checked_and_says_what_it_needs() -> None:
    found = diagnose(Subject(model("bn+ws")))
    left_out = {c.name: c.not_checked for c in found.checks if c.not_checked}
    assert len(left_out) == 6
    assert "needs an example" in left_out["standardized, and no norm after it"]
    assert "--micro_batch" in left_out["batch statistics of one sample"]


def test_standardized_without_a_norm_behind() -> None:
    net = model()
    net.last = normalized(net.last, "gn+ws")  # type: ignore[assignment]
    (finding,) = check("standardized, and no norm after it", healthy(model=net)).findings
    assert finding.layer == "last"
    assert "exclude=['last']" in finding.remedy
    assert not check("standardized, and no norm after it", healthy(model=net, deliberate=["last"])).findings


@pytest.mark.parametrize(
    ("spec", "words"),
    [("bn+ws", "subtracts it again"), ("in+ws", "subtracts it again"), ("gn+ws", "no more than its group's mean")],
)
def test_a_bias_in_front_of_a_norm(spec: str, words: str) -> None:
    net = model(spec, lambda net: setattr(net, "conv", nn.Conv2d(3, 8, 3)))
    (finding,) = check("bias in front of a norm", healthy(model=net)).findings
    assert finding.layer == "conv"
    assert words in finding.what
    assert "'norm'" in finding.what


def test_weights_of_another_normalization_to_start_from() -> None:
    name = "initialized from weights of another normalization"
    (finding,) = check(name, healthy(initialized_from={"norm_spec": "gn"})).findings
    assert "'gn', the model is 'gn+ws'" in finding.what
    (finding,) = check(name, healthy(initialized_from={"state_dict": {}})).findings
    assert "do not say their normalization" in finding.what
    assert not check(name, healthy(initialized_from={"norm_spec": "bn+ws"})).findings, "the filters' scale is kept"


def test_another_spec_than_the_checkpoints() -> None:
    name = "spec of the model and of its checkpoint"
    (finding,) = check(name, healthy(checkpoint={"norm_spec": "gn"})).findings
    assert "trained with 'gn', the model is 'gn+ws'" in finding.what
    assert "--norm gn" in finding.remedy
    (finding,) = check(name, healthy(checkpoint={"state_dict": {}})).findings
    assert "does not say" in finding.what
    (finding,) = check(name, healthy(model=model("gn"), checkpoint={"norm_spec": "gn+ws"})).findings
    assert "no layer has a weight normalization" in finding.what
    assert not check(name, healthy(model=model("gn"), spec=NormSpec("gn"), checkpoint={"norm_spec": "gn"})).findings
    net = model()
    net.last = normalized(net.last, "gn+ws@timm")  # type: ignore[assignment]
    (finding,) = check(name, healthy(model=net)).findings
    assert finding.layer == "last"
    assert "'gn+ws@timm', other layers 'gn+ws'" in finding.what


@pytest.mark.parametrize(("spec", "value", "words"), [("gn+ws", 0.3, "constant"), ("gn+ws-mo", 0.3, "constant"),
                                                      ("gn+ws-do", 0.0, "zero")])  # fmt: skip
def test_constant_filters(spec: str, value: float, words: str) -> None:
    net = model(spec)
    with torch.no_grad():
        net.conv.weight[2] = value
        net.conv.weight[5] = value
    (finding,) = check("constant filters", healthy(model=net)).findings
    assert f"2 of 8 filters are {words} (channels 2, 5)" in finding.what
    assert not check("filters damped by eps", healthy(model=net)).findings, "said once"
    assert not check("constant filters", healthy(model=model(spec))).findings


@pytest.mark.parametrize("spec", ["gn+ws", "gn+ws-do", "gn+ws-af", "gn+ws@authors", "gn+ws@timm"])
def test_filters_damped_by_eps(spec: str) -> None:
    net = model(spec)
    with torch.no_grad():
        net.conv.weight[3] *= 1e-4
    (finding,) = check("filters damped by eps", healthy(model=net)).findings
    assert "1 of 8 filters are damped by eps" in finding.what
    assert not check("filters damped by eps", healthy(model=model(spec))).findings
    assert not check("filters damped by eps", healthy(model=model("gn+ws-mo"))).findings, "it divides by nothing"


def test_damping_is_the_ratio_that_it_says() -> None:
    net = model()
    with torch.no_grad():
        net.conv.weight[3] -= net.conv.weight[3].mean()
        net.conv.weight[3] *= 4e-5 / net.conv.weight[3].std(correction=0)
    (finding,) = check("filters damped by eps", healthy(model=net)).findings
    assert "down to 0.800 of unit deviation (sigma 4.0e-05)" in finding.what


@pytest.mark.parametrize(("scale", "word"), [(1.0, "lower the learning rate"), (1e-9, "raise the learning rate")])
def test_a_learning_rate_off_the_scale_of_the_weights(scale: float, word: str) -> None:
    name = "learning rate against the scale of the weights"
    updates = {"conv.weight": Update(scale * torch.randn(8, 3, 3, 3), 1.0, 1.0)}
    (finding,) = check(name, healthy(updates=updates)).findings
    assert finding.layer == "conv"
    assert word in finding.remedy
    lowered = {"conv.weight": Update(torch.randn(8, 3, 3, 3), 0.0, 0.01)}
    assert not check(name, healthy(updates=lowered)).findings, "a schedule has come to its end"
    constant = {"conv.weight": Update(torch.ones(8, 3, 3, 3), 1.0, 1.0)}
    (finding,) = check(name, healthy(updates=constant)).findings
    assert "raise" in finding.remedy, "a constant is subtracted again, so nothing moves"


def test_batch_statistics_of_one_sample() -> None:
    name = "batch statistics of one sample"
    (finding,) = check(name, healthy(model=model("bn+ws"))).findings
    assert finding.layer == "norm"
    assert "36 values a channel" in finding.what
    assert not check(name, healthy(model=model("bn+ws"), micro_batch=2)).findings
    assert not check(name, healthy(model=model("frozenbn+ws"))).findings
    assert not check(name, healthy()).findings


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, 0.1, momentum=0.9),
        lambda p: Adam(p, 0.01),
        lambda p: AdamW([{"params": [q], "lr": 0.01 * (i + 1)} for i, q in enumerate(p)], weight_decay=0.0),
    ],
)
def test_updates_are_what_the_last_step_subtracted(make: Callable[[Any], Optimizer]) -> None:
    net = model().double()
    optimizer = make(list(net.parameters()))
    for step in range(3):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        optimizer.zero_grad()
        torch.manual_seed(step)
        net(torch.randn(2, 3, 8, 8, dtype=torch.double)).square().sum().backward()
        optimizer.step()
    updates = updates_of_optimizer(optimizer, net)
    assert set(updates) == set(before)
    for name, p in net.named_parameters():
        found = updates[name].rate * updates[name].direction
        torch.testing.assert_close(before[name] - p.detach(), found, rtol=1e-6, atol=1e-12)
    assert updates_of_optimizer(SGD(net.parameters(), 0.1), net) == {}
