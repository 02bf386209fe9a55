"""Metrics of generated text, 0-100, each with the sufficient statistics that bootstrap intervals need.

metric = METRICS["sari"]
metric(predictions, sources, references)                        # the score
statistics = metric.statistics(predictions, sources, references)
bootstrap(metric, statistics, seed=0)                           # Interval(value, low, high)
"""

from deft_tsds.metrics.bleu import BLEU
from deft_tsds.metrics.bootstrap import Interval, bootstrap, bootstrap_difference, interval, resampled_scores
from deft_tsds.metrics.chrf import CHRF
from deft_tsds.metrics.metric import Metric
from deft_tsds.metrics.overlap import EXACT_MATCH, ROUGE_L, TOKEN_F1
from deft_tsds.metrics.sari import SARI, SARI_CORPUS, SARI_HF

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (SARI, SARI_HF, SARI_CORPUS, ROUGE_L, EXACT_MATCH, TOKEN_F1, BLEU, CHRF)
}

__all__ = ["METRICS", "Interval", "Metric", "bootstrap", "bootstrap_difference", "interval", "resampled_scores"]
