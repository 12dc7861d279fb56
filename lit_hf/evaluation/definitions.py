"""What the metrics are, in words, for whoever reads them without the code: by the name that each is logged under.

A name that ends with `*` stands for all that begin like it. The first that fits counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

LOSS = "the mean of what training minimizes, over all targets"

SINGLE_LABEL = {
    "accuracy": "the share of rows whose label is right",
    "f1_macro": "the harmonic mean of precision and recall of each class, and of these the mean",
    "f1_micro": "the same over all rows together, which for one label a row is the accuracy",
    "precision": "of the rows that a class is predicted for, the share that are of it; the mean over classes",
    "recall": "of the rows of a class, the share that it is predicted for; the mean over classes",
    "mcc": "the Matthews correlation coefficient: 1 is all right, 0 no better than chance",
    "auroc": "the area under the ROC curve of each class against the rest; the mean over classes",
}
MULTI_LABEL = {
    **SINGLE_LABEL,
    "accuracy": "the share of rows whose labels are all right",
    "f1_micro": "the harmonic mean of precision and recall, over all labels of all rows together",
}
REGRESSION = {
    "pearson": "Pearson's correlation of predicted and true numbers",
    "spearman": "Spearman's correlation of their ranks",
    "mse": "the mean squared difference of predicted and true numbers",
}
TAGGING = {
    "accuracy": "the share of words whose tag is right",
    "precision": "of the entities that are found, the share whose type and words are all right",
    "recall": "of the entities that are there, the share that are found with type and words all right",
    "f1": "the harmonic mean of precision and recall over entities, as seqeval computes it",
    "precision_*": "the precision of entities of that type",
    "recall_*": "the recall of entities of that type",
    "f1_*": "the F1 of entities of that type",
}
ANSWERS = {
    "exact_match": "the percentage of answers that are a right one, but for case, punctuation, articles and blanks",
    "f1": "the overlap of an answer's words with those of the right one that fits best, in percent; the mean",
    "questions": "how many questions there are",
    "answerable_*": "the same over questions that have an answer",
    "unanswerable_*": "the same over questions that have none",
    "best_f1": "the F1 that the best threshold for having no answer would reach",
    "best_f1_threshold": "that threshold: how much more no answer must score than the best one",
}
CHOICES = {"accuracy": "the share of rows whose choice is right"}
TEXTS = {
    "rouge1": "ROUGE-1: the F-measure of single words shared with the reference, from 0 to 1",
    "rouge2": "ROUGE-2: the same of pairs of words",
    "rougeL": "ROUGE-L: the same of the longest sequence that both have",
    "rougeLsum": "ROUGE-Lsum: ROUGE-L line by line",
    "bleu": "the BLEU of all texts together, from 0 to 100, as sacrebleu computes it",
    "chrf": "the chrF of all texts together, from 0 to 100, as sacrebleu computes it",
}
LANGUAGE_MODELLING = {
    "perplexity": "the exponential of the mean negative log-likelihood of the predicted tokens",
    "bits_per_byte": "the negative log-likelihood in bits over the UTF-8 bytes of the text",
    "token_accuracy": "the share of predicted tokens that the model would have chosen",
}
PAIRS = {
    "accuracy": "the share of pairs whose preferred text gets the higher reward",
    "margin": "by how much the preferred text's reward is higher; the mean",
    "reward_chosen": "the mean reward of the preferred texts",
    "reward_rejected": "the mean reward of the others",
}
RETRIEVAL = {
    "recall@*": "the share of queries that find their own passage, among all of the split, within that many",
    "mrr": "the mean of 1 over the rank at which a query finds its own passage",
}


def definition(name: str, definitions: Mapping[str, str]) -> str:
    """Return what a metric is; empty where nobody says.

    Args:
        name: The name that it is logged under, without the split's.
        definitions: Those of the task.

    >>> definition("f1_PER", TAGGING)
    'the F1 of entities of that type'
    """
    known = {**definitions, "loss": definitions.get("loss", LOSS)}
    return next((text for pattern, text in known.items() if fnmatchcase(name, pattern)), "")
