"""TensorFlow's graphs and Keras' private interfaces; nothing here knows of classifiers."""
