"""The twelve, in order."""

from scratchnet.exercises.block import BLOCK
from scratchnet.exercises.convolutions import CONV2D, DEPTHWISE, POINTWISE
from scratchnet.exercises.first import CROSS_ENTROPY, LINEAR, RELU6
from scratchnet.exercises.modules import MODULE, RESIDUAL
from scratchnet.exercises.norms import BATCH_NORM
from scratchnet.exercises.pools import GLOBAL_AVG_POOL, MAX_POOL

ORDER = (
    LINEAR, RELU6, CROSS_ENTROPY, MODULE, GLOBAL_AVG_POOL, MAX_POOL,
    POINTWISE, CONV2D, DEPTHWISE, BATCH_NORM, RESIDUAL, BLOCK,
)  # fmt: skip
COURSE = {exercise.name: exercise for exercise in ORDER}
