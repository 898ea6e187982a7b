"""What tests need of the backend that runs, and Keras does not offer."""

import keras
import numpy as np


def compiled(function):
    """A function of arrays, compiled on JAX, where operations one at a time take many seconds the first time."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def with_gradients(function):
    """A function's value and gradients with respect to the first of its arguments, a list of float arrays.

    Args:
        function: takes a list of tensors, and whatever else; returns a scalar tensor.

    Returns:
        A function of the same arguments that returns the value, a float, and a list of NumPy gradients.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        def differentiate(arrays, *rest):
            tensors = [tf.constant(array) for array in arrays]
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = function(tensors, *rest)
            return value, tape.gradient(value, tensors, unconnected_gradients="zero")
    else:
        import jax

        differentiate = compiled(jax.value_and_grad(function))

    def run(arrays, *rest):
        value, gradients = differentiate(list(arrays), *rest)
        return float(value), [np.asarray(gradient) for gradient in gradients]

    return run


def value_and_gradients(function, *arrays):
    """The value of a scalar function of so many float arrays, and its gradients."""
    return with_gradients(lambda tensors: function(*tensors))(arrays)
