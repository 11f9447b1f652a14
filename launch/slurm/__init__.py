"""SLURM engines: `submit` writes, submits and follows a job; `step` supervises the workers inside it."""
