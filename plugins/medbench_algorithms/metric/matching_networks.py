"""Matching Networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra, NeurIPS 2016)."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Predictor, Support
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.common.geometry import class_masks, cosine_similarities

# Numbers in the gates of all queries that take a step together: 4 MB of float32.
_GATES_AT_ONCE = 2**20


@final
class FullContext(nn.Module):
    """Embeds every image in the light of the support set: the paper's appendix A.

    ``steps``: how often a query reads the support set; None for once a support image.
    """

    def __init__(self, d: int, steps: int | None) -> None:
        super().__init__()
        self.along_support = nn.LSTM(d, d, batch_first=True, bidirectional=True)
        # A gate sums its inputs, so that feeding the read-out beside the features is the same as
        # the paper's concatenating it to the state.
        self.reader = nn.LSTMCell(2 * d, d)
        self.steps = steps

    def of_support(self, support: Tensor) -> Tensor:
        """g(x_i, S) ``(..., n, d)``: features plus the states of both directions (A.2)."""
        flat = support.reshape(-1, *support.shape[-2:]).to(self.reader.weight_hh.dtype)
        states, _ = self.along_support(flat)
        forward, backward = states.chunk(2, dim=-1)
        context: Tensor = (flat + forward + backward).reshape(support.shape)
        return context.to(support.dtype)

    def of_query(self, query: Tensor, context: Tensor) -> Tensor:
        """f(x, S) ``(..., n_query, d)`` given g(x_i, S) ``(..., n, d)`` (A.1, Eqs. 3 to 6)."""
        n, d = context.shape[-2:]
        g = context.reshape(-1, n, d).to(self.reader.weight_hh.dtype)
        x = query.reshape(len(g), -1, d).to(g.dtype)
        at_once = max(1, _GATES_AT_ONCE // (x.shape[1] * 4 * d))
        parts = zip(torch.split(x, at_once), torch.split(g, at_once), strict=True)
        read = torch.cat([self._read(*part) for part in parts])
        return read.reshape(query.shape).to(query.dtype)

    def _read(self, x: Tensor, g: Tensor) -> Tensor:
        """`of_query` for x ``(e, q, d)`` and g ``(e, n, d)``.

        The LSTM's matrices meet what they multiply as early as they can: the query's own features
        once instead of at every step, and the n support images instead of what each query reads
        of them. The state alone is left to be multiplied at every step.
        """
        d = x.shape[-1]
        reader = self.reader
        of_features, of_read = torch.split(reader.weight_ih, d, dim=1)
        fixed = F.linear(x, of_features + reader.weight_hh, reader.bias_ih + reader.bias_hh)
        likeness = x @ g.mT
        contents = F.linear(g, of_read)
        state = cell = None
        for _ in range(g.shape[1] if self.steps is None else self.steps):
            seen = likeness if state is None else torch.baddbmm(likeness, state, g.mT)
            gates = torch.baddbmm(fixed, seen.softmax(-1), contents)
            if state is not None:
                gates = gates + F.linear(state, reader.weight_hh)
            enter, keep, new, leave = torch.split(gates, d, dim=-1)
            found = enter.sigmoid() * new.tanh()
            cell = found if cell is None else torch.addcmul(found, keep.sigmoid(), cell)
            state = leave.sigmoid() * cell.tanh()
        return x if state is None else x + state


@final
class AttentionPredictor(Predictor):
    """Attends to the support set by cosine, and adds up the attention of every class."""

    def __init__(
        self, context: Tensor, support: Support, scale: float, network: FullContext | None
    ) -> None:
        self.context = context
        self.members = class_masks(support.labels, support.n_way)
        self.scale = scale
        self.network = network

    def predict(self, query: Tensor) -> Tensor:
        """Log-probabilities ``(..., n_query, n_way)`` of features ``(..., n_query, d)`` (Eq. 1)."""
        if self.network is not None:
            query = self.network.of_query(query, self.context)
        attention = (self.scale * cosine_similarities(query, self.context)).log_softmax(-1)
        others = ~self.members.unsqueeze(-3)
        # The log of a sum of exponents is finite where a sum of tiny attentions would be null.
        return attention.unsqueeze(-2).masked_fill(others, -math.inf).logsumexp(-1)


@final
class MatchingNetworks(Episodic[nn.Module]):
    """Learns features by which a query's nearest support images vote for its class.

    A query attends to every support image by the softmax of their cosine similarities, times
    ``scale``; the probability of a class is the sum over its images (Eq. 1, section 2.1.1).
    Trained on source episodes by the queries' cross-entropy (section 2.2).

    ``fce`` adds full context embeddings (section 2.1.2 and appendix A): a bidirectional LSTM over
    the support set, and an LSTM that reads from it for each query. Support images then count in
    the order they are given, as in the paper; queries stay independent of each other. The paper
    does not say how often the second reads: ``fce_steps`` null takes as many steps as there are
    support images, and starts from the query's own features, as reimplementations do (Chen et al.
    2019).
    """

    def __init__(
        self,
        *,
        scale: float = 1.0,
        fce: bool = False,
        fce_steps: int | None = None,
        lr: float = 1e-3,
        lr_halve_every: int = 2000,
        pretrain_share: float = 0.0,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        super().__init__(lr=lr, lr_halve_every=lr_halve_every, pretrain_share=pretrain_share)
        self.scale = scale
        self.fce = fce
        self.fce_steps = fce_steps

    def build(self, backbone: Backbone) -> nn.Module:
        """The networks of full context embeddings, if there are any."""
        return FullContext(backbone.n_features, self.fce_steps) if self.fce else nn.Identity()

    def predictor(self, head: nn.Module, support: Support) -> AttentionPredictor:
        """The support features ``(..., n_support, d)``, in context or as they are."""
        if isinstance(head, FullContext):
            context = head.of_support(support.inputs)
            return AttentionPredictor(context, support, self.scale, head)
        return AttentionPredictor(support.inputs, support, self.scale, None)
