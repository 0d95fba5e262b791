"""ModelNet40's loss, metrics, votes, schedules and images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from tests import tiny
from wsbench.tasks.errors import TaskOptionError


def test_label_smoothing_of_both_codes() -> None:
    """TensorFlow's (1 - e) onehot + e / K is torch's; the release's e / (K - 1) is torch's with e K / (K - 1)."""
    logits, labels = torch.randn(6, 40, dtype=torch.double), torch.randint(0, 40, (6,))
    one_hot = F.one_hot(labels, 40).double()
    logs = logits.log_softmax(1)
    tensorflow = -((one_hot * 0.8 + 0.2 / 40) * logs).sum(1).mean()
    release = -((one_hot * 0.8 + (1 - one_hot) * 0.2 / 39) * logs).sum(1).mean()
    torch.testing.assert_close(F.cross_entropy(logits, labels, label_smoothing=0.2), tensorflow)
    torch.testing.assert_close(F.cross_entropy(logits, labels, label_smoothing=0.2 * 40 / 39), release)
    task: Any = tiny.model("modelnet40", "gn16")
    batch = {"cloud": torch.randn(4, 32, 3), "label": torch.randint(0, 10, (4,))}
    task.eval()
    total, number = task.loss(batch)
    torch.testing.assert_close(total / number, F.cross_entropy(task.logits(batch), batch["label"], label_smoothing=0.2))


def test_metrics_are_scikit_learns() -> None:
    task: Any = tiny.model("modelnet40", "gn16")
    task.confusion.reset()
    logits, labels = torch.randn(50, 10), torch.randint(0, 7, (50,))  # three classes do not occur
    task.voted_logits = lambda batch: batch["cloud"]
    task.evaluate({"cloud": logits, "label": labels})
    values, count = task.compute_metrics()
    predicted = logits.argmax(1)
    assert count == 50
    assert values["overall_acc"] == pytest.approx(100 * accuracy_score(labels, predicted))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert values["mean_class_acc"] == pytest.approx(100 * balanced_accuracy_score(labels, predicted))


def test_twelve_votes_are_turns_about_the_vertical_axis() -> None:
    task: Any = tiny.model("modelnet40", "gn16", votes=12).eval()
    clouds = torch.randn(2, 32, 3)
    expected = torch.zeros(2, 10)
    for vote in range(12):
        angle = torch.tensor(vote / 12 * 2 * torch.pi)
        x, z = clouds[..., 0], clouds[..., 2]
        turned = torch.stack([angle.cos() * x - angle.sin() * z, clouds[..., 1], angle.sin() * x + angle.cos() * z], 2)
        expected += task.network(turned).detach()
    torch.testing.assert_close(task.voted_logits({"cloud": clouds}).detach(), expected, rtol=1e-3, atol=1e-3)
    assert "12 votes" in task.definitions()["overall_acc"]


def test_the_papers_optimizer_and_bn_momentum(tiny_roots: dict[str, Path]) -> None:
    task: Any = tiny.model("modelnet40", "bn")
    trainer = tiny.trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(task, tiny.data("modelnet40", tiny_roots["modelnet40"]))
    (optimizer,) = trainer.optimizers
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["initial_lr"], group["betas"], group["weight_decay"]) == (1e-3, (0.9, 0.999), 0.0)
    momenta = {m.momentum for m in task.network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)}
    assert momenta == {0.5}, "1 - 0.5: the decay of the first 200,000 samples"
    assert {m.eps for m in task.network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)} == {1e-3}


def test_the_releases_optimizer_is_a_cosine(tiny_roots: dict[str, Path]) -> None:
    task: Any = tiny.model("modelnet40", "gn16", network="dgcnn", optimizer="sgd", lr=0.1, schedule="cosine",
                           weight_decay=1e-4, bn_decay=False)  # fmt: skip
    rates = []
    hook = task.on_before_optimizer_step
    task.on_before_optimizer_step = lambda o: (rates.append(o.param_groups[0]["lr"]), hook(o))
    trainer = tiny.trainer(max_steps=4, limit_val_batches=0)
    trainer.fit(task, tiny.data("modelnet40", tiny_roots["modelnet40"]))
    parameter = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([parameter], lr=0.1), 2, eta_min=1e-3)
    expected = []
    for _ in range(2):  # epochs of two steps
        expected += 2 * [theirs.get_last_lr()[0]]
        theirs.optimizer.step()
        theirs.step()
    assert rates == pytest.approx(expected)


def test_a_prediction_is_a_page_with_the_cloud(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    task: Any = tiny.model("modelnet40", "gn16").eval()
    task.classes = tuple("abcdefghij")
    prediction = task.predict_step({"cloud": torch.randn(1, 32, 3), "path": "x/chair_1.off", "name": "chair_1"}, 0)
    paths = task.write_prediction(prediction, tmp_path)
    assert [p.name for p in paths] == ["chair_1.json", "chair_1.html"]
    assert len(json.loads(paths[0].read_text())["classes"]) == 5
    page = paths[1].read_text()
    assert "plotly.min.js" in page
    assert "http://" not in page.replace("http://www.w3.org", ""), "nothing is fetched from elsewhere"
    assert (tmp_path / "plotly.min.js").is_file()
    assert len(page) < 100_000


def test_wrong_options() -> None:
    for options, message in (({"network": "pointnet"}, "unknown network 'pointnet'"), ({"votes": 0}, "--model.votes"),
                             ({"k": 0}, "--model.k 0: expected a number from 1")):  # fmt: skip
        with pytest.raises(TaskOptionError, match=message):
            tiny.model("modelnet40", "gn16", **options)
