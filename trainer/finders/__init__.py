"""`--find_lr` and `--find_batch_size`: short trials of a run that say which setting to take."""
