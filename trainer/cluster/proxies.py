"""Connections between workers bypass proxies: TensorFlow's gRPC uses the one in `http_proxy` for every address."""

import os

from convoy.core.cluster import Cluster, host_and_port

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # gRPC takes the first that is set, and no capitals
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")  # the same


def proxy_variable() -> str:
    """Returns the name of the environment variable that makes gRPC use a proxy; empty if there is none."""
    return next((name for name in _VARIABLES if os.environ.get(name)), "")


def bypass_proxies(cluster: Cluster) -> None:
    """Makes gRPC connect to the workers directly. `no_proxy`, which other libraries read too, stays as it is."""
    if proxy_variable():
        direct = next((value for name in _EXCEPTIONS if (value := os.environ.get(name))), "")
        hosts = [*filter(None, direct.split(",")), *(host_and_port(address)[0] for address in cluster.addresses)]
        os.environ[_EXCEPTIONS[0]] = ",".join(dict.fromkeys(hosts))
