"""The parts of a run: its data, its trainer, its files, and how far it is."""

from __future__ import annotations

import logging

import numpy as np

from rnnlm import checkpoint
from rnnlm.arrays import F32, I32, I64
from rnnlm.checkpoint import Checkpoint, Weights
from rnnlm.data.corpus import Corpus, load_corpus, open_corpus
from rnnlm.data.embeddings import check_source, load_embeddings, root_lengths
from rnnlm.files import digest
from rnnlm.language_model import perplexity
from rnnlm.regularization import CandidateSampler, Regularizer
from rnnlm.training.batches import Batches
from rnnlm.training.config import ConfigError, TrainConfig
from rnnlm.training.distributed import Group
from rnnlm.training.init_from import Base
from rnnlm.training.initial import initial_weights
from rnnlm.training.progress import Progress
from rnnlm.training.resume import State, warn_of_another_rate
from rnnlm.training.runfiles import RunFiles
from rnnlm.training.schedule import average_every, learning_rate
from rnnlm.training.trainer import Trainer

log = logging.getLogger(__name__)


class Run:
    """The parts of one training run.

    In a run of several processes each has a Run of its own. All take the same decisions at the same steps, and only
    rank 0 writes files.
    """

    def __init__(self, config: TrainConfig, corpus: Corpus, trainer: Trainer, vectors: F32, group: Group) -> None:
        """vectors: (V, E), the frozen embeddings. Raises ConfigError (a small text, another text than process 0's)."""
        self.config, self.corpus, self.trainer, self.group = config, corpus, trainer, group
        self.validation = corpus.validation[: config.validation_tokens]
        if self.validation.size < 2:
            raise ConfigError("the validation split has fewer than two tokens; use a larger text")
        self.batches = Batches(corpus.train, config.batch_size, config.bptt, rank=group.rank, processes=group.size)
        trainer.set_average_interval(average_every(config, len(self.batches)))
        self.unigram_perplexity = unigram_perplexity(corpus.train_counts(), self.validation)
        self.regularizer = regularizer(config, corpus, vectors.shape[1])
        self.is_sampled = config.is_sampled(len(corpus.vocabulary))  # the training loss is of candidates only
        data = fingerprint(corpus, vectors)
        group.agree({"text or vectors": data, "test split": fingerprint_of_test(corpus)})
        is_first = group.rank == 0
        self.files = RunFiles(config.weights_path(trainer.backend), tensorboard=config.tensorboard and is_first)
        self.about = {
            "backend": trainer.backend,
            "processes": group.size,
            "vocabulary": len(corpus.vocabulary),
            "config": config.as_dict(),
        }
        self.state = State(self.files, config, data, corpus.tokenizer, trainer, vectors, group)
        self.progress = Progress()
        self.best: Weights | None = None  # of the best evaluation; the file may lag behind if the disk was full

    @classmethod
    def prepare(cls, config: TrainConfig, trainer_class: type[Trainer], group: Group) -> Run:
        """Read the corpus and the vectors, and make the trainer. Logs what was read."""
        if group.size > 1 and "-" in (config.corpus, config.validation, config.test):
            raise ConfigError("several processes cannot share standard input: give a text file instead of -")
        base = Base.load(config.init_from, group) if config.init_from else None
        with group.machine_first():
            source = open_corpus(config.corpus, validation=config.validation, test=config.test)
        group.from_first(lambda: check_source(config.embeddings))  # now: reading a corpus may take minutes
        with group.machine_first():
            corpus = load_corpus(
                config.corpus,
                source,
                tokenizer=config.tokenizer,
                lowercase=config.lowercase,
                vocab_size=config.vocab_size,
                max_tokens=config.max_tokens,
                words=base.words if base else (),
            )
        for line in corpus.report():
            log.info(line)
        if group.rank == 0 and (warning := corpus.warning()):
            log.warning(warning)
        if corpus.validation.size > config.validation_tokens:
            log.info(f"evaluated on the first {config.validation_tokens:,} tokens of validation (--validation-tokens)")
        checkpoint.check_vocabulary(corpus.vocabulary.words)
        loaded: list[F32] = []

        def load_vectors() -> str:
            if base:
                embeddings = base.vectors(corpus, config)
                loaded.append(embeddings.vectors)
                return embeddings.report()
            embeddings = load_embeddings(config.embeddings, corpus, size=config.embedding_size, seed=config.seed)
            loaded.append(root_lengths(embeddings.vectors) if config.vector_lengths == "root" else embeddings.vectors)
            return embeddings.report()

        log.info(group.from_first(load_vectors))
        vectors = group.array_from_first(loaded.pop() if loaded else None)
        if base:
            weights = base.extended(corpus.vocabulary.words, vectors, group)
        else:
            counts = corpus.train_counts() if config.init == "unigram" else None
            weights = initial_weights(vectors, config.hidden_size, config.seed, counts)
        trainer = trainer_class(weights, config, group)
        return cls(config, corpus, trainer, vectors, group)

    @property
    def step(self) -> int:
        """The next step, counted from 0 over the whole run."""
        return self.progress.epoch * len(self.batches) + self.progress.step

    @property
    def epochs(self) -> float:
        """The epochs that are done: a whole number, or with a fraction."""
        at = self.progress
        return at.epoch + at.step / len(self.batches) if at.step else at.epoch

    @property
    def tokens(self) -> int:
        """The tokens learned from so far, over all processes."""
        return self.progress.epoch * self.batches.tokens + self.batches.tokens_before(self.progress.step)

    def learning_rate(self, step: int) -> float:
        """Return the rate of `step`, counted from 0 over the whole run."""
        total = self.config.epochs * len(self.batches)
        return learning_rate(self.config, step, total, self.progress.rate_scale)

    def begin_metrics(self) -> None:
        """Start the metrics file with the configuration, or continue that of a resumed run."""
        if self.group.rank == 0:
            self.files.begin(self.about, self.progress.history, self.step)

    def save_weights(self, weights: Weights) -> None:
        """Write the weights file. If the disk is full, the run goes on: see RunFiles.

        Its history ends with the evaluation of these weights. It is empty if they have not been evaluated: those of a
        run that was interrupted before its first evaluation after training began.
        """
        if self.group.rank == 0:
            history, best = self.progress.history, self.progress.best_epoch
            last = max((i for i, row in enumerate(history) if best and row["epoch"] == best), default=-1)
            source = Checkpoint(
                weights=weights,
                vocabulary=self.corpus.vocabulary.words,
                tokenizer=self.corpus.tokenizer,
                backend=self.trainer.backend,
                config=self.config.as_dict()
                | {"processes": self.group.size, "unigram_perplexity": self.unigram_perplexity},
                history=history[: last + 1],
            )
            self.files.save_weights(source)

    def save_state(self) -> None:
        """Write what --resume needs. All processes must call it."""
        if "weights" in self.files.unsaved and self.best is not None:
            self.save_weights(self.best)  # there may be room again
        self.state.save(self.progress, self.best)

    def resume(self) -> bool:
        """Continue where the run of the same configuration was stopped. Returns False if nothing was saved.

        Raises ConfigError (another text, other vectors), CheckpointError.
        """
        loaded = self.state.load()
        if loaded is None:
            return False
        self.progress, self.best, epochs = loaded
        self._complete_progress()
        if self.group.rank == 0:
            warn_of_another_rate(self.config, epochs, self.progress, len(self.batches))
            if self.best is not None and not self.files.holds(self.best):
                self.save_weights(self.best)
        return True

    def _complete_progress(self) -> None:
        """Bring the progress that an earlier release saved into its present form."""
        at = self.progress
        if at.loss_sum and not at.loss_tokens:
            at.loss_tokens = self.batches.tokens_before(at.step)
        if at.step == len(self.batches):
            at.epoch, at.step = at.epoch + 1, 0


def regularizer(config: TrainConfig, corpus: Corpus, input_size: int) -> Regularizer:
    """Return what draws the dropout masks and the candidates that the configuration asks for."""
    counts = corpus.train_counts()
    return Regularizer(
        seed=config.seed,
        input_size=input_size,
        hidden_size=config.hidden_size,
        dropout=config.dropout,
        input_dropout=config.input_dropout,
        word_dropout=config.word_dropout,
        vocab_size=counts.size,
        sampler=CandidateSampler(counts, config.sampled_softmax) if config.is_sampled(counts.size) else None,
    )


def unigram_perplexity(counts: I64, ids: I32) -> float:
    """Return the perplexity of ids[1:] if only the words' frequencies are known: a yardstick for the model's own.

    counts: (V,), how often each word occurs in the training text. Absolute discounting (Ney, Essen and Kneser 1994, and
    their estimate of the discount) leaves the words that do not occur there a share, spread evenly over all.
    """
    ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
    discount = ones / (ones + 2 * twos) if ones else 0.5
    spread = discount * (counts > 0).sum() / counts.size
    probabilities = (np.maximum(counts - discount, 0.0) + spread) / counts.sum()
    return perplexity(float(-np.log(probabilities[ids[1:]]).mean()))


def fingerprint(corpus: Corpus, vectors: F32) -> str:
    """Return a few characters that tell one text, vocabulary and set of frozen vectors from another."""
    return digest("\n".join(corpus.vocabulary.words).encode(), corpus.train, corpus.validation, vectors)[:16]


def fingerprint_of_test(corpus: Corpus) -> str:
    """Return a few characters that tell one test split from another; "none" if there is none.

    It is not part of `fingerprint`: a run may be resumed with another test split and trains as before.
    """
    return "none" if corpus.test is None else digest(corpus.test)[:16]
