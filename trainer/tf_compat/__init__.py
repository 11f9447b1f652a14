"""Everything that depends on private APIs of TensorFlow and Keras."""
