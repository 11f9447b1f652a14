"""Training on the nodes of a Ray cluster: `convoy launch ray --nodes=2 --gpus_per_node=8 -- train ...`.

A placement group reserves the nodes, one bundle per node. On each node an actor starts an agent (`launch/agents`),
which runs the worker, and passes messages between it and the launcher. Ray restarts nothing: the supervisor restarts
all workers, in a new placement group. If an actor or the launcher dies, the agents stop the workers after saving.

`engine.py` has the flags, `starter.py` starts an attempt, `cluster.py` has all calls of Ray but those in
`connection.py`. Ray is imported in functions only, because it is an extra and slow to import.
"""
