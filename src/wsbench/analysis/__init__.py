"""Section 2 of the paper on a live model: gradients on standardized weights, curvature, smoothness, and a diagnosis.

>>> from wsbench.analysis import GradientShares, Problem, Subject, curvature, diagnose, smoothness
>>> trainer = Trainer(callbacks=[GradientShares(folder)])        # A, B, R at the first optimizer step of each epoch
>>> problem = Problem(model, batches, loss_of, report.eligible)  # any model, any loss
>>> curvature(problem), smoothness(problem, etas=[0.1, 0.2])
>>> diagnose(Subject(model, example=images, micro_batch=1)).findings
"""

from wsbench.analysis.callback import GradientShares, Snapshots
from wsbench.analysis.curvature import Curvature, Estimate, curvature
from wsbench.analysis.diagnosis import Check, Diagnosis, Finding, Subject, Update, diagnose, updates_of_optimizer
from wsbench.analysis.problem import Problem, ProblemError
from wsbench.analysis.shares import Aggregate, ChannelShares, SharesError, aggregate, decompose
from wsbench.analysis.smoothness import Smoothness, smoothness

__all__ = [
    "Aggregate",
    "ChannelShares",
    "Check",
    "Curvature",
    "Diagnosis",
    "Estimate",
    "Finding",
    "GradientShares",
    "Problem",
    "ProblemError",
    "SharesError",
    "Smoothness",
    "Snapshots",
    "Subject",
    "Update",
    "aggregate",
    "curvature",
    "decompose",
    "diagnose",
    "smoothness",
    "updates_of_optimizer",
]
