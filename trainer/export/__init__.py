"""Exporting a trained model as SavedModel, Keras file, LiteRT and ONNX, each verified against the run."""
