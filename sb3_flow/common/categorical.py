"""Distributions of returns over fixed atoms, what a categorical critic has instead of a number (C51, arXiv 1707.06887).

Pure: tensors in, tensors out. Shapes: N critics, B batch, J atoms.
"""

from typing import NamedTuple

import torch as th
from torch.nn.functional import log_softmax


class Support(NamedTuple):
    """J atoms, evenly spaced on [-bound, bound]."""

    n_atoms: int
    bound: float

    def atoms(self, like: th.Tensor) -> th.Tensor:
        """Their places, (J,), with dtype and device of a tensor."""
        return th.linspace(-self.bound, self.bound, self.n_atoms, dtype=like.dtype, device=like.device)


def expectation(probs: th.Tensor, support: Support) -> th.Tensor:
    """Means of distributions, (*, J) -> (*)."""
    return (probs * support.atoms(probs)).sum(dim=-1)


def one_of(probs: th.Tensor, lowest: bool, support: Support) -> th.Tensor:
    """The distribution that stands for those of N critics, (N, B, J) -> (B, J).

    :param probs: (N, B, J)
    :param lowest: in each state the one with the lowest mean; else the equal mixture of all
    :param support: of the distributions
    """
    if not lowest:
        return probs.mean(dim=0)
    chosen = expectation(probs, support).argmin(dim=0)  # (B,)
    return probs[chosen, th.arange(probs.shape[1], device=probs.device)]


def target_distribution(probs: th.Tensor, target_q: th.Tensor, bootstrap: th.Tensor, support: Support) -> th.Tensor:
    """Distribution of `y + gamma^m (1 - done) (Z' - E Z')` on the support, (B, J), for Z' ~ probs.

    With y the scalar TD target this is the distributional one, whatever y is made of: rewards, an entropy term and a
    verdict of several critics only move it.

    :param probs: (B, J) of Z', the return from s' on
    :param target_q: (B,) y
    :param bootstrap: (B,) gamma^m (1 - done)
    :param support: of Z' and of the result
    """
    spread = support.atoms(probs) - expectation(probs, support).unsqueeze(1)  # (B, J)
    return project(probs, target_q.unsqueeze(1) + bootstrap.unsqueeze(1) * spread, support)


def project(probs: th.Tensor, values: th.Tensor, support: Support) -> th.Tensor:
    """Share every probability between the two atoms next to its value, which keeps the mean (C51, Eq. 7).

    What lies beyond the support goes to its end, and what is no number makes the result none.

    :param probs: (B, J)
    :param values: (B, J) where they are
    :param support: to share between
    """
    spacing = 2 * support.bound / (support.n_atoms - 1)
    place = ((values.clamp(-support.bound, support.bound) + support.bound) / spacing).clamp(0, support.n_atoms - 1)
    below = place.floor().clamp(max=support.n_atoms - 2)
    upper = place - below  # the share of the atom above
    index = below.nan_to_num(0).long()
    out = th.zeros_like(probs).scatter_add(1, index, probs * (1 - upper))
    return out.scatter_add(1, index + 1, probs * upper)


def cross_entropy(logits: th.Tensor, target: th.Tensor) -> th.Tensor:
    """`-sum_j m_j log p_j` of every critic, (N, B, J) and (B, J) -> (N, B).

    :param logits: (N, B, J), p = softmax
    :param target: (B, J) m
    """
    return -(target * log_softmax(logits, dim=-1)).sum(dim=-1)
