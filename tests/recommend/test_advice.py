"""The words and the lines of code: run as they are printed, against the batch's own gradient."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.leaderboard.test_verdict import BEST, FAR, LEVEL, tuned
from wsbench.leaderboard.wide import groups
from wsbench.norms import normalize
from wsbench.recommend.advice import Advice, AdviceError, Optimizer, advise
from wsbench.records import RunRecord

SGD = Optimizer("SGD", ", momentum=0.9, weight_decay=0.0001")


def advice(*records: Sequence[RunRecord]) -> Advice:
    return advise(groups([r for each in records for r in each]), "photos", SGD, (1, 3, 16, 16), ("Facts.",))


def test_the_title_says_what_the_numbers_do() -> None:
    clear = advice(tuned("gn+ws", BEST), tuned("bn", FAR))
    assert clear.title == "photos: use gn+ws at learning rate 0.1"
    assert clear.sentences[0].startswith("Use gn+ws: top-1 error 15.4")
    assert clear.sentences[-1] == "Facts."
    tied = advice(tuned("gn+ws", BEST), tuned("gn", LEVEL))
    assert tied.title == "photos: no significant difference; best mean: gn+ws at learning rate 0.1"
    idle = advice(tuned("gn+ws", [90.0, 85, 91, 93, 88]), tuned("gn", [90.0, 91, 90, 92, 90]))
    assert idle.title == "photos: nothing can be recommended, the runs are too short"
    assert idle.code == ""


def test_the_network_is_named_where_there_are_several() -> None:
    found = advice(
        tuned("gn+ws", BEST, network="a"), tuned("bn", FAR, network="a"),
        tuned("gn", LEVEL, network="b"), tuned("bn", FAR, network="b"),
    )  # fmt: skip
    assert found.title == "photos: use gn+ws at learning rate 0.1 on a"
    assert [s.partition(":")[0] for s in found.sentences if s[1:2] == ":"] == ["A", "A", "B", "B"]


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(AdviceError, match="no two norms"):
        advice(tuned("gn+ws", BEST))


@pytest.mark.parametrize("norm", ["gn+ws", "gn", "bn"])
def test_the_code_takes_the_step_of_the_whole_batch(norm: str) -> None:
    """Pasted into a loop it makes the gradient of the mean loss over all samples of an optimizer step."""
    code = advice(tuned(norm, BEST), tuned("ln", FAR)).code
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(5, (8,))

    def network() -> nn.Module:
        torch.manual_seed(1)
        layers = [nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(32, 5)).double()

    def loss_of(model: nn.Module, i: int) -> torch.Tensor:
        return nn.functional.cross_entropy(model(images[i : i + 1].double()), labels[i : i + 1])

    lines = code.replace("torch.zeros(1, 3, 16, 16)", "torch.zeros(1, 3, 16, 16).double()").splitlines()
    where: dict[str, Any] = {"model": network()}
    first = next(i for i, line in enumerate(lines) if "window.micro_step" in line or "backward" in line)
    exec("\n".join(lines[:first]), where)
    for i in range(8):
        body = ["loss = loss_of(model, i)", *lines[first:]]
        if "micro_step" in lines[first]:
            body = [lines[first], "    loss = loss_of(model, i)", *lines[first + 1 :]]
        exec("\n".join(body), where | {"i": i, "loss_of": loss_of})
    assert where["optimizer"].param_groups[0]["lr"] == 0.1
    expected = network()
    normalize(expected, norm, example=torch.zeros(1, 3, 16, 16).double())
    (sum(loss_of(expected, i) for i in range(8)) / 8).backward()  # type: ignore[union-attr]
    for (name, a), (_, b) in zip(where["model"].named_parameters(), expected.named_parameters(), strict=True):
        assert a.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
