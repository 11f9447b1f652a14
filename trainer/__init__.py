"""Training, evaluation, prediction and export of image classifiers."""

if __name__ != "convoy.trainer":
    raise ImportError(f"{__name__}: import convoy.trainer instead")
