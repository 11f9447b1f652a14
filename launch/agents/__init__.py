"""Workers on other hosts, run there by agents: shared by the launchers that start the agents over ssh or with Ray."""
