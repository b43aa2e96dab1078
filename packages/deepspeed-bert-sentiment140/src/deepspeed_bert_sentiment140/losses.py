"""The loss of each tweet, and three ways to keep a large class from drowning out a small one."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deepspeed_bert_sentiment140.config import TrainConfig


def tweet_losses(logits: Tensor, labels: Tensor, weights: Tensor, config: TrainConfig) -> Tensor:
    """Return the loss of each tweet, (B,), to be averaged over the tweets of a step.

    Focal loss (Lin et al. 2017, arXiv 1708.02002) multiplies the cross-entropy by (1 - p)^gamma, p being the
    probability given to the true class: what the model is sure of hardly counts any more.

    Args:
        logits: (B, K), of any precision.
        labels: (B,) int64.
        weights: (K,) of each class, 1 where classes are not weighed.
        config: imbalance, focal_gamma, label_smoothing.
    """
    logits = logits.float()
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=config.label_smoothing)
    if config.imbalance == "focal":
        of_truth = logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0].exp()
        losses = (1 - of_truth) ** config.focal_gamma * losses
    return weights[labels] * losses


def class_weights(labels: Tensor, config: TrainConfig) -> Tensor:
    """Return a weight for each class, (K,): the inverse of its size, with a mean of 1 over the training tweets."""
    if config.imbalance != "weights":
        return torch.ones(config.num_classes)
    return len(labels) / (config.num_classes * torch.bincount(labels, minlength=config.num_classes).float())
