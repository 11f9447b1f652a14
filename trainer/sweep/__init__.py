"""Search for a config by trial runs, on Optuna: search space, study, and the trial's side."""
