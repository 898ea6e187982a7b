"""What tests need of the backend that runs, and Keras does not offer."""

import keras
import numpy as np


def compiled(function):
    """A function of arrays, compiled on JAX, where operations one at a time take many seconds the first time."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def value_and_gradients(function, *arrays):
    """A scalar function of float arrays and its gradients.

    Args:
        function: takes as many tensors as there are arrays; returns a scalar tensor.
        arrays: float32 NumPy arrays.

    Returns:
        The value, a float, and a list of NumPy gradients, one an array.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tensors = [tf.constant(array) for array in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            value = function(*tensors)
        gradients = tape.gradient(value, tensors, unconnected_gradients="zero")
    else:
        import jax

        every = tuple(range(len(arrays)))
        value, gradients = compiled(jax.value_and_grad(function, argnums=every))(*arrays)
    return float(value), [np.asarray(gradient) for gradient in gradients]
