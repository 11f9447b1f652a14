"""What TensorBoard shows of a run: its event files, and what stands on each of its pages."""
