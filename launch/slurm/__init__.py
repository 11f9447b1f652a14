"""Runs on a cluster with SLURM: `submit` writes and submits the job, `step` supervises the workers inside it."""
