"""What every part of Convoy shares: errors, files, processes, the run directory's layout. Imports no TensorFlow."""
