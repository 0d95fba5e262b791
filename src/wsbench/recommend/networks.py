"""Networks that a recommendation is asked for by name: what their own weights mean under another norm."""

from collections.abc import Sequence

import torchvision.models as zoo
from torch.nn.modules.batchnorm import _BatchNorm

from wsbench.models.by_name import classifier, example, is_named
from wsbench.models.resnet import RESNETS
from wsbench.models.resnetv2 import is_resnetv2
from wsbench.norms import NormSpec, normalize
from wsbench.norms.recognize import is_norm
from wsbench.options import UsageError
from wsbench.registry import TASKS


def full_name(task: str, network: str, pretrained: bool) -> str:
    """A network's name as ``--model.network`` takes it: a bare one of a classification may be torchvision's.

    Args:
        task: of the data.
        network: as it was asked for.
        pretrained: whether it is to have its package's weights, which wsbench's own networks have not.
    """
    if not TASKS[task].torchvision_classifies or is_named(network):
        return network
    own = network in RESNETS or is_resnetv2(network)
    if network in zoo.list_models(module=zoo) and (pretrained or not own):
        return f"torchvision:{network}"
    if own and not pretrained:
        return network
    raise UsageError(f"--networks {network}: it is none of wsbench's, nor of torchvision's; say timm:NAME, "
                     "torchvision:NAME or MODULE:FUNCTION")  # fmt: skip


def what_its_weights_mean(network: str, norms: Sequence[str], pretrained: bool) -> list[str]:
    """Of a network by name: for each norm a sentence on what becomes of its layers and of its own weights.

    Raises:
        UsageError: it cannot be built, or a norm has no layer in it to apply to.
    """
    if not is_named(network):
        return []
    sentences = []
    for norm in norms:
        try:
            model = classifier(network, 10)
            own = sorted({type(m).__name__ for m in model.modules() if is_norm(m)})
            batch = all(isinstance(m, _BatchNorm) for m in model.modules() if is_norm(m))
            counts = normalize(model, norm, example=example(model)).counts()
        except ValueError as error:
            raise UsageError(f"--networks {network}: {error}") from error
        if not counts["activation"] and not counts["weight"]:
            raise UsageError(
                f"--networks {network}: '{norm}' has nothing to apply to (its own normalization: "
                f"{', '.join(own) or 'none'}), so its runs would not be of '{norm}'; leave the network or the norm out"
            )
        spec = NormSpec.parse(norm)
        if not pretrained:
            what = ""
        elif norm == "bn" and batch:
            what = ": its own weights, as they were trained"
        else:
            what = ": its own filters; the function is another, so they are a start, not a trained network"
            what += " (standardized, each keeps its shape and loses its scale)" if spec.weight == "ws" else ""
        turned = f"{counts['activation']} normalization layers converted, {counts['kept']} kept"
        sentences.append(f"{network} under {norm}: {turned}, {counts['weight']} layers weight-normalized{what}")
    return sentences
