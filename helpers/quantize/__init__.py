"""From a trained network to INT8: freezing, quantizing with Intel Neural Compressor, deciding."""

from helpers.quantize.freezing import freeze
from helpers.quantize.inc import CalibrationLoader, quantize, quiet
from helpers.quantize.ladder import Trial, sensitivity, tune

__all__ = ["CalibrationLoader", "Trial", "freeze", "quantize", "quiet", "sensitivity", "tune"]
