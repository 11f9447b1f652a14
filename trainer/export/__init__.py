"""A trained model taken away: as SavedModel, Keras file, LiteRT and ONNX, each checked against the run."""
