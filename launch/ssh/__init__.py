"""Training on a few hosts that share a folder and have no scheduler. On each host an agent, started over ssh, runs the
workers.
"""
