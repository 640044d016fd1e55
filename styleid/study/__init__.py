"""Studies: sweeps over settings, by this process or a cluster, and the evaluation protocol of the paper."""

from styleid.study.grid import Grid
from styleid.study.merging import merge
from styleid.study.protocol import Evaluation, evaluate_results
from styleid.study.reproduction import reproduce
from styleid.study.sweeps import SweepIncomplete, sweep

__all__ = ["Evaluation", "Grid", "SweepIncomplete", "evaluate_results", "merge", "reproduce", "sweep"]
