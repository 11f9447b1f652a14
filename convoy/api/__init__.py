"""The Python API, which `convoy` exports: functions that do what the commands do, and the objects they return.

Library code: logs through `logging.getLogger("convoy")`, prints nothing, ends no process, and leaves the global state
of Keras and TensorFlow as it was found. TensorFlow is imported only by what needs it.
"""
