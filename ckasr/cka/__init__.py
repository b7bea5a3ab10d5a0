"""Centered Kernel Alignment (CKA) and the CKA-SR loss. This package needs only torch.

CKA of two layers is the cosine between the centred Gram matrices of their features: the inner
product of the matrices divided by both Frobenius norms. There are two estimators:

* ``biased``: centring is ``H K H`` with ``H = I - 11'/n`` (Kornblith et al. 2019, arXiv 1905.00414,
  eq. 3). With few samples and many features it is close to 1 for any two layers (Murphy et al.
  2024, arXiv 2405.01012).
* ``unbiased``: U-centring makes the diagonal zero, and the inner product is HSIC_1 of Song et al.
  2012 times ``n (n - 3)``. It needs ``n >= 4``. CKA is between -1 and 1, and has mean 0 for
  independent layers.

Features are tensors ``(n, ...)``, where ``n`` is the number of samples. They are flattened to
``(n, d)``. The result has the type of the features, except that half precision gives float32, and
integers, whose differences are exact, give float64. Complex features raise a TypeError. The
following holds for every function of this package:

* NaN or infinity in a layer gives NaN for every pair with this layer.
* A constant layer is *dead*: its CKA with every layer, including itself, is 0, with gradient 0. The
  same holds for a layer whose centred Gram matrix is zero up to the rounding errors of its
  features. For the unbiased estimator this includes layers with all samples at equal distances, or
  all samples equal except one.
* CKA does not depend on scale: ``c * x`` has the CKA of ``x``, unless the sum of ``n`` features
  overflows, which gives NaN. Only :func:`cka_sr_loss` has narrower limits: float32 features below
  about 1e-18 count as constant, and features above about 1e18 give NaN.
"""

from .grams import center, gram_linear, gram_rbf, hsic, unit_grams
from .inputs import MIN_UNBIASED_SAMPLES, Estimator, Kernel, Pairs, Variant
from .loss import cka_sr_loss
from .matrix import cka_matrix, linear_cka, null_zscore, rbf_cka
from .minibatch import MinibatchCKA

__all__ = [
    "MIN_UNBIASED_SAMPLES",
    "Estimator",
    "Kernel",
    "MinibatchCKA",
    "Pairs",
    "Variant",
    "center",
    "cka_matrix",
    "cka_sr_loss",
    "gram_linear",
    "gram_rbf",
    "hsic",
    "linear_cka",
    "null_zscore",
    "rbf_cka",
    "unit_grams",
]
