"""Looks inside a model: why it predicts a word, what it remembers, and what its weights hold.

Hidden states and logits come from a back end, C or torch; the small linear algebra around them is here, in NumPy, once
for both. With h_t the state after token t and p the prediction from h_T,

    influence    KL(p || p without token i): the token is left out of the sequence, and what follows it is read again
    gradient     d log p[y] / d x_i, from the word y that is explained back to the embedding x_i of token i
    Jacobian     dh_T / dh_i = A_{i+1} ... A_T (in, out),   A_t = dh_t / dh_{t-1} = Whh diag(1 - h_t^2)
    spectrum     the eigenvalues of Whh, and of the mean A_t over a text
    candidates   p, and the distribution that temperature, top-k and top-p make of it

(Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", reads memory off these products.)
Texts and models are bounded in size by the constants of network.py; what is beyond them raises InspectionError.
"""

from rnnlm.inspection.candidates import Candidate, Candidates, candidates
from rnnlm.inspection.influence import WINDOW, Influence, WordProbability
from rnnlm.inspection.memory import Memory
from rnnlm.inspection.network import (
    MAX_HIDDEN,
    MAX_STATE_VALUES,
    MAX_TOKENS,
    MAX_WORDS,
    TOP,
    InspectionError,
    Matrices,
    Network,
    WordValue,
)
from rnnlm.inspection.text import Inspection, inspect
from rnnlm.inspection.weights import Neighbours, Spectrum, Unit, neighbours, spectrum, unit

__all__ = [
    "MAX_HIDDEN",
    "MAX_STATE_VALUES",
    "MAX_TOKENS",
    "MAX_WORDS",
    "TOP",
    "WINDOW",
    "Candidate",
    "Candidates",
    "Influence",
    "Inspection",
    "InspectionError",
    "Matrices",
    "Memory",
    "Neighbours",
    "Network",
    "Spectrum",
    "Unit",
    "WordProbability",
    "WordValue",
    "candidates",
    "inspect",
    "neighbours",
    "spectrum",
    "unit",
]
