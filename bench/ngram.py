"""The n-gram yardstick: interpolated Kneser-Ney smoothing (Kneser & Ney 1995; Chen & Goodman 1998, section 4.1.6).

    P_n(w | h) = max(c(h w) - D_n, 0) / c(h .)  +  D_n N1+(h .) / c(h .) * P_{n-1}(w | h')

h' is h without its first word. The highest order counts occurrences; lower orders count the different contexts in which
an n-gram occurs, N1+(. h w). D_n = n1 / (n1 + 2 n2), where n1 and n2 are the numbers of n-grams that occur once and
twice. Unigrams back off to the uniform distribution. The text is one long sequence, as for the RNN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length. An n-gram's id is its index in `keys`; its key is (id of the first n-1) * V + last.

    count: occurrences of each n-gram.  total, kinds: indexed by a context's id, the sum and the number of its counts.
    """

    keys: I64
    count: F64
    total: F64
    kinds: F64
    discount: float


class KneserNey:
    """An n-gram model of order `order` over token ids in [0, vocab)."""

    def __init__(self, ids: npt.NDArray[np.integer], vocab: int, order: int) -> None:
        self.vocab = vocab
        raw: list[tuple[I64, I64, I64]] = []  # per length: keys, the id at each position, the first position of each
        before = np.zeros(ids.size, dtype=np.int64)  # the id of the n-1 words before a position
        for n in range(1, order + 1):
            keys, first, at = np.unique(before[n - 1 :] * vocab + ids[n - 1 :], return_index=True, return_inverse=True)
            places = np.full(ids.size, -1, dtype=np.int64)
            places[n - 1 :] = at
            raw.append((keys, places, first + n - 1))
            before = np.roll(places, 1)
        self.orders: list[_Order] = []
        for n, (keys, places, _) in enumerate(raw, start=1):
            if n == order:
                count = np.bincount(places[n - 1 :], minlength=keys.size)
            else:  # each longer n-gram adds one context to the shorter one that it ends with
                longer_first = raw[n][2]
                count = np.bincount(places[longer_first], minlength=keys.size)
            contexts = raw[n - 2][0].size if n > 1 else 1
            context = keys // vocab
            ones, twos = (count == 1).sum(), (count == 2).sum()
            self.orders.append(
                _Order(
                    keys=keys,
                    count=count.astype(np.float64),
                    total=np.bincount(context, weights=count, minlength=contexts),
                    kinds=np.bincount(context, weights=count > 0, minlength=contexts),
                    discount=ones / (ones + 2 * twos) if ones else 0.0,
                )
            )

    def probabilities(self, ids: npt.NDArray[np.integer]) -> F64:
        """Return (N,), the probability of each token of `ids` (N,) given those before it."""
        p = np.full(ids.size, 1.0 / self.vocab)
        context = np.zeros(ids.size, dtype=np.int64)  # -1: did not occur
        for order in self.orders:
            keys = np.where(context >= 0, context * self.vocab + ids, -1)
            at = np.minimum(np.searchsorted(order.keys, keys), order.keys.size - 1)
            seen = order.keys[at] == keys
            known = context >= 0
            total = np.where(known, order.total[context], 0.0)
            usable = total > 0
            count = np.where(seen, order.count[at], 0.0)
            kinds = np.where(usable, order.kinds[context], 0.0)
            divisor = np.where(usable, total, 1.0)
            mixed = np.maximum(count - order.discount, 0.0) / divisor + order.discount * kinds / divisor * p
            p = np.where(usable, mixed, p)
            context = np.roll(np.where(seen, at, -1), 1)
            context[0] = -1
        return p

    def perplexity(self, ids: npt.NDArray[np.integer]) -> float:
        """Return the perplexity of ids[1:]: the first token is given, as for the RNN."""
        return math.exp(-np.log(self.probabilities(ids)[1:]).mean())
