"""Training in a Kubernetes cluster: from flags to manifests, and from these to `kubectl apply`.

    convoy launch kubernetes --replicas=2 --gpus=8 --image=registry/convoy:gpu --pvc=team --mount=/team \
        -- train --data=/team/data --workdir=/team/run

`request.py` checks what was asked for, `manifests.py` says it in Kubernetes' words, `yaml_text.py` writes these down,
`kubectl.py` hands them over. What watches and restarts the pods is the cluster's own controller: JobSet's, or Training
Operator's where that is what a cluster has. In each pod runs `convoy launch worker` (`launch/worker.py`).
"""
