"""How far a distribution is from full prefill's."""

import torch

__all__ = ["mean_kl"]


def mean_kl(reference: torch.Tensor, ours: torch.Tensor) -> float:
    """Mean over steps of KL(reference || ours), in nats, of log-probabilities `[num_steps, vocabulary]`."""
    return float((reference.exp() * (reference - ours)).sum(-1).mean())
