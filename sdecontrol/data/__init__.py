"""Real data: read an array, and fit a Gaussian or a mixture on its principal subspace."""

from sdecontrol.data.arrays import DataSet, digits, from_array, read
from sdecontrol.data.fits import RIDGE, FitSummary, PrincipalSubspace, fit, fit_labelled

__all__ = ["RIDGE", "DataSet", "FitSummary", "PrincipalSubspace", "digits", "fit", "fit_labelled", "from_array", "read"]
