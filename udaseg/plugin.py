# ruff: noqa: F401 - this file only hands names on
"""All that a method may import: base classes, the nouns of a step, and the pieces that methods are made of.

A method is a module with a table ``COMPONENTS``: kind of component -> name in recipes -> class. The kinds are encoder,
decoder, wrapper, sampler, view, masker, engine, pseudo_labels, term, measure and training_measure. `udaseg.addons`
holds three of them.
"""

from __future__ import annotations

from udaseg.component import Assumption, Component, Default, ImageCrop, Needs, Plan, SampleExtra, Settings
from udaseg.core.augment import ColourAugment, colour_jitter, draw_jitter, gaussian_blur, kernel_size
from udaseg.core.base import TARGET, Masker, PseudoLabelRule, Term, TranslationEngine, ViewBuilder
from udaseg.core.context import (
    IGNORE,
    Batch,
    BuildContext,
    Loss,
    Normalisation,
    PseudoLabels,
    Reduce,
    StepContext,
    StepRng,
    View,
    alone,
)
from udaseg.core.masking import Blocks
from udaseg.core.mixing import choose_classes, class_mask, class_slots, mix, present_classes
from udaseg.core.terms.cross_entropy import CrossEntropy, cross_entropy, inside, segmentation_loss
from udaseg.core.terms.feature_distance import FeatureDistance, downscale_label, wanted_cells
from udaseg.core.views import Masked, Mixed, Source, Target
from udaseg.core.weighting import ConfidenceShare
from udaseg.data.images import read_image
from udaseg.data.sampling import (
    Choice,
    ClassThenImage,
    LabelStatistics,
    RareClass,
    Sampler,
    Uniform,
    class_probabilities,
    drawable_classes,
)
from udaseg.data.spec import walk as list_images
from udaseg.data.transforms import Crop, cut, random_box, resize_image
from udaseg.errors import UserError
from udaseg.evaluation.confusion import class_iou
from udaseg.evaluation.features import Cells, Centres, FeatureMeasure
from udaseg.evaluation.training import Track, Training, TrainingMeasure
from udaseg.files import user_path
from udaseg.models.blocks import ConvBNReLU, resize
from udaseg.models.segmentor import (
    Box,
    Decoded,
    Decoder,
    Encoded,
    Encoder,
    FeatureMaps,
    Output,
    Segmentor,
    Wrapper,
    upsample,
)
from udaseg.models.weights import read_tensors
from udaseg.models.weights_file import restore
from udaseg.ranges import ClassNames, Count, Extent, HalfTurn, Momentum, NotNegative, Share, Temperature
