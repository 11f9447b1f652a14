"""TensorBoard event files and the contents of its pages."""
