"""Copies of a model that train side by side: how many there are, sums over all, and the share of each in a batch.

TensorFlow's MirroredStrategy runs a step once a replica, each on its share of the batch, and Keras adds up what the
replicas' losses say to the weights. On JAX arrays are those of the whole batch already, wherever their parts lie.
"""

from __future__ import annotations

import keras


def replica_count() -> int:
    """How many replicas run this very computation, each on its own share of the batch; 1 where there are none."""
    context = _context()
    return 1 if context is None else context.num_replicas_in_sync


def sum_over_replicas(values: list) -> list:
    """Each tensor summed over all replicas; the tensors themselves where there are no replicas.

    Args:
        values: tensors of any shape, as many and of the same shapes on every replica.

    Returns:
        As many tensors, the same on every replica.
    """
    context = _context()
    if context is None:
        return values
    import tensorflow as tf

    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, values))


def normalizes_over_replicas() -> bool:
    """Whether a model that is made here will be copied, so that BatchNorm has to look at all copies' images."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync > 1


class SharedBatches(keras.distribution.DataParallel):
    """JAX: every device has all weights, is shown every batch, and computes its share of it, see `shared_out`.

    With Keras' own DataParallel a batch arrives in equal parts, which a last, short batch may not have.
    """

    def __init__(self):
        super().__init__(auto_shard_dataset=False)

    def get_data_layout(self, data_shape):
        """Whole on every device."""
        return keras.distribution.TensorLayout([None] * len(data_shape), self.device_mesh)


def shared_out(tensors: list) -> list:
    """Spreads a batch over the devices of `SharedBatches`, each with as many images.

    Args:
        tensors: whose first dimension is the batch.

    Returns:
        The same values; where the batch does not divide by the devices, or outside of what is compiled for them, the
        same tensors: every device then computes all of it, and what comes out is the same.
    """
    distribution = keras.distribution.distribution()
    if not isinstance(distribution, SharedBatches):
        return tensors
    import jax

    mesh = distribution.device_mesh
    if not all(isinstance(one, jax.core.Tracer) and one.shape[0] % mesh.devices.size == 0 for one in tensors):
        return tensors
    spread = [
        keras.distribution.TensorLayout([distribution.batch_dim_name] + [None] * (one.ndim - 1), mesh)
        for one in tensors
    ]
    return [keras.distribution.distribute_tensor(one, layout) for one, layout in zip(tensors, spread, strict=True)]


def _context():
    """TensorFlow's replica context, where there is more than one replica; else None."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    context = tf.distribute.get_replica_context()  # None outside of what the replicas run
    return None if context is None or context.num_replicas_in_sync == 1 else context
