"""Training in a Kubernetes cluster: renders manifests from flags and applies them with kubectl.

    convoy launch kubernetes --replicas=2 --gpus=8 --image=registry/convoy:gpu --pvc=team --mount=/team \
        -- train --data=/team/data --workdir=/team/run

`request.py` validates the flags, `manifests.py` makes the manifests, `yaml_text.py` serializes them, `kubectl.py`
applies them. The JobSet controller in the cluster watches and restarts the pods. Each pod runs `convoy launch worker`
(`launch/worker.py`).
"""
