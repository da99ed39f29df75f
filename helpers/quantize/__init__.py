"""From a trained network to INT8: freezing, quantizing with Intel Neural Compressor, deciding."""

from helpers.quantize.freezing import freeze
from helpers.quantize.inc import CalibrationLoader, quantize, quiet
from helpers.quantize.ladder import Judge, Trial, climb, sensitivity, tune

__all__ = [
    "CalibrationLoader",
    "Judge",
    "Trial",
    "climb",
    "freeze",
    "quantize",
    "quiet",
    "sensitivity",
    "tune",
]
