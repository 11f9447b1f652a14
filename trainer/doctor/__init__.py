"""What a run would use, checked before it runs: cluster, network, devices, run directory, data, config."""
