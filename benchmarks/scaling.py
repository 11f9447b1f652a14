"""`convoy bench scaling`: two devices and two processes compared with one, the cost of the reduction, and a cost model.

Weak scaling: every device trains on the same number of images, and the number of cores grows with the devices. The
reference is one process with one device on one core; efficiency is the throughput of two devices in one process, or of
two processes with one core each, divided by twice the throughput of the reference. Pairs that train without a reduction
show what the machine itself allows; the cost of the reduction is measured against them.

`benchmarks.cost_model` predicts the same pair, is validated on rate-limited links (`--link`), and predicts clusters
that were not measured.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from benchmarks import cost_model, measure
from benchmarks.link import rate_limited_link
from benchmarks.scaling_peers import DEVICES
from benchmarks.step import auto_precision
from benchmarks.workers import Member
from convoy.core.errors import UsageError
from convoy.core.processes import processor_numbers
from convoy.launch.ports import reserved_ports

PEERS = {
    "one-fast": "1 device, 1 process",
    "one-deterministic": "1 device, 1 process, deterministic",
    "devices-fast": "2 devices, 1 process",
    "devices-deterministic": "2 devices, 1 process, deterministic",
    "processes-fast": "2 processes",
    "processes-deterministic": "2 processes, deterministic",
    "devices-fast-apart": "2 devices, no reduction",
    "devices-deterministic-apart": "2 devices, no reduction, deterministic",
    "processes-fast-apart": "2 processes, no reduction",
    "processes-deterministic-apart": "2 processes, no reduction, deterministic",
    "processes-bare": "2 processes, the reduction alone",
    "processes-tiny": "2 processes, the reduction of one value",
}
_LINK_PEERS = ("processes-fast", "processes-fast-apart", "processes-bare", "processes-tiny")
_REDUCTIONS = ("processes-bare", "processes-tiny")
_MODELS = ("convnet", "baseline_cnn")
_CORES = 2
_GPUS = (8, 64, 512)
_GIGABITS = (25, 100, 400)
_BYTES = {"float32": 4, "bfloat16": 2}


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of this benchmark."""
    measure.define_steps_per_round(flags)
    absl_flags.DEFINE_enum("model", "convnet", _MODELS, "Benchmark scaling: model name.", flag_values=flags)
    absl_flags.DEFINE_list(
        "link",
        [],
        "Benchmark scaling: also train over links with these rates in Mbit/s, such as 100,400,1000, to validate the "
        "cost model. Requires root and iproute2.",
        flag_values=flags,
    )
    number = absl_flags.DEFINE_float
    number(
        "gpu_images_per_second",
        20_000.0,
        "Benchmark scaling: assumed throughput of one GPU in images/s, for the prediction.",
        lower_bound=1e-3,
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "gpu_batch_size", 256, "Benchmark scaling: images per GPU and step.", lower_bound=1, flag_values=flags
    )
    number("gpu_latency", 10.0, "Benchmark scaling: assumed message latency, us.", lower_bound=0.0, flag_values=flags)


def run(flags: absl_flags.FlagValues) -> None:
    """Runs the benchmark, prints the table and writes the JSON file."""
    rates = _checked_rates(flags.link)
    cores = processor_numbers()[:_CORES]
    if flags.threads:
        raise UsageError("--threads: scaling assigns cores to each process itself. Omit it.")
    if len(cores) < _CORES:
        raise UsageError("scaling needs two cores: this process may use one.")
    if rates:
        with rate_limited_link(rates[0]):  # fails now if a tool is missing, not after minutes of measurement
            pass
    peers = {name: PEERS[name] for name in measure.chosen_peers(flags.peers, PEERS)}
    names = ("batch_size", "image_size", "steps_per_round", "model")
    options = {name: getattr(flags, name) for name in names} | {"precision": auto_precision(), "threads": 0}
    console, about = measure.begin()
    measurement = _measure(peers, options, flags.rounds, cores)
    facts = next(iter(measurement.rows.values())).facts
    link = _own_link(measurement.rows, facts["reduced_bytes"])
    table = [_line(row, measurement.rows, facts, link, options) for row in measurement.rows.values()]
    links = [_over_link(rate, options, flags.rounds, cores) for rate in [*rates, *([None] if rates else [])]]
    links = list(_with_copying(links))
    predictions = list(
        predicted(facts["parameters"], flags.gpu_images_per_second, flags.gpu_batch_size, flags.gpu_latency * 1e-6)
    )
    assumptions = {name: getattr(flags, name) for name in ("gpu_images_per_second", "gpu_batch_size", "gpu_latency")}
    measure.write_json(
        flags.json,
        {
            "benchmark": "scaling",
            "unit": "images/s; reductions/s in those alone",
            "environment": about,
            "settings": options | {"rounds": flags.rounds},
            "facts": facts,
            "rows": table,
            "link_here": None if link is None else vars(link),
            "links": links,
            "prediction": {"assumes": assumptions, "rows": predictions},
            "skipped": measurement.skipped,
        },
    )
    _print_measured(console, table, facts, options, link)
    _print_links(console, links)
    _print_predicted(console, predictions, facts, assumptions)


def predicted(
    parameters: int, images_per_second: float, batch_size: int, latency_seconds: float
) -> Iterator[dict[str, Any]]:
    """Yields the predictions of the cost model for clusters with one GPU per host, the worst case.

    Args:
      parameters: number of parameters of the model.
      images_per_second: throughput of one GPU.
      batch_size: images per GPU and step.
      latency_seconds: latency of a message between hosts.
    """
    compute = batch_size / images_per_second
    for devices in _GPUS:
        for shape in cost_model.SHAPES:
            for precision, width in _BYTES.items():
                num_bytes = cost_model.reduced_bytes(parameters, width)
                for gigabits in _GIGABITS:
                    link = cost_model.Link.of_gigabits(gigabits, latency_seconds)
                    reduction = cost_model.all_reduce_seconds(devices, num_bytes, link, shape)
                    step = cost_model.step_seconds(compute, reduction)
                    yield {
                        "devices": devices,
                        "shape": shape,
                        "precision": precision,
                        "gigabits_per_second": gigabits,
                        "reduction_seconds": reduction,
                        "efficiency": cost_model.efficiency(compute, step),
                    }


def _checked_rates(texts: Sequence[str]) -> list[float]:
    try:
        rates = [float(text) for text in texts]
    except ValueError:
        rates = [0.0]
    if not all(0.1 <= rate <= 100_000 for rate in rates):
        raise UsageError(f"--link={','.join(texts)}: pass rates in Mbit/s, 0.1 to 100000, for example 100,400,1000.")
    return rates


def _measure(
    peers: Mapping[str, str],
    options: Mapping[str, Any],
    rounds: int,
    cores: Sequence[int],
    hosts: Sequence[str] = ("127.0.0.1",) * 2,
    prefixes: Sequence[tuple[str, ...]] = ((), ()),
) -> measure.Measurement:
    """Measures peers; the two processes of a pair run on `hosts` through `prefixes`."""
    members = {}
    pairs = [name for name in peers if name.startswith("processes")]
    with reserved_ports(2 * len(pairs)) as ports:
        addresses = {
            name: [f"{host}:{port}" for host, port in zip(hosts, ports[2 * k : 2 * k + 2], strict=True)]
            for k, name in enumerate(pairs)
        }
    for name in peers:
        if name in addresses:
            members[name] = [
                Member({"cores": [cores[rank]], "addresses": addresses[name], "rank": rank}, prefixes[rank])
                for rank in range(2)
            ]
        else:
            members[name] = [Member({"cores": cores[: DEVICES[name.split("-")[0]]]})]
    return measure.measure("benchmarks.scaling_peers", peers, options, rounds, members)


def _line(
    row: measure.Row,
    rows: Mapping[str, measure.Row],
    facts: Mapping[str, Any],
    link: cost_model.Link | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    layout, what, *apart = row.peer.split("-")
    devices = DEVICES[layout]
    if row.peer in _REDUCTIONS:
        return row.as_json() | {"devices": devices}
    one = rows.get(f"one-{what}")
    speedup = row.ratio_to(one)
    kept = row.ratio_to(rows.get(f"{row.peer}-apart"))
    expected = None
    if layout == "processes" and one and link and not apart:
        compute = options["batch_size"] / one.rate
        reduction = cost_model.all_reduce_seconds(devices, facts["reduced_bytes"], link)
        expected = cost_model.efficiency(compute, cost_model.step_seconds(compute, reduction))
    return row.as_json() | {
        "devices": devices,
        "efficiency": None if speedup is None else speedup / devices,
        "predicted_efficiency": expected,
        "reduction_share": None if kept is None else 1 - kept,
        "to_fast": row.ratio_to(rows.get(row.peer.replace("deterministic", "fast"))),
    }


def _own_link(rows: Mapping[str, measure.Row], num_bytes: int) -> cost_model.Link | None:
    """Returns the link between the two processes, as inferred from their reductions timed alone."""
    if not all(name in rows for name in _REDUCTIONS):
        return None
    bare, tiny = (1 / rows[name].rate for name in _REDUCTIONS)
    return cost_model.measured_link(2, num_bytes, bare, tiny)


def _over_link(megabits: float | None, options: Mapping[str, Any], rounds: int, cores: Sequence[int]) -> dict[str, Any]:
    """Returns the time of the reduction over a link and the prediction of the model; no prediction without a limit."""
    peers = {name: f"{PEERS[name]}, {megabits or 'no'} Mbit/s" for name in _LINK_PEERS}
    with rate_limited_link(megabits) as ends:
        hosts, prefixes = [end.address for end in ends], [end.prefix for end in ends]
        rows = _measure(peers, options, rounds, cores, hosts, prefixes).rows
    steps = options["steps_per_round"]
    whole, apart = rows["processes-fast"], rows["processes-fast-apart"]
    in_step = statistics.median(
        (a.seconds - b.seconds) / steps for a, b in zip(whole.rounds, apart.rounds, strict=True)
    )
    alone, tiny = 1 / rows["processes-bare"].rate, 1 / rows["processes-tiny"].rate
    line = {"megabits_per_second": megabits, "latency_seconds": tiny / cost_model.all_reduce_messages(2)}
    line |= {"in_step_seconds": in_step, "alone_seconds": alone, "rows": [row.as_json() for row in rows.values()]}
    if megabits is None:
        return line
    link = cost_model.Link.of_gigabits(megabits / 1e3, line["latency_seconds"])
    expected = cost_model.all_reduce_seconds(2, whole.facts["reduced_bytes"], link)
    return line | {
        "predicted_seconds": expected,
        "in_step_to_predicted": in_step / expected,
        "alone_to_predicted": alone / expected,
    }


def _with_copying(links: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Adds to each line the prediction that includes copying by the software.

    Copying is the time of the reduction without a rate limit, minus its messages.
    """
    for line in links:
        if line["megabits_per_second"] is None:
            yield line
            continue
        free = links[-1]
        messages = cost_model.all_reduce_messages(2) * free["latency_seconds"]
        expected = line["predicted_seconds"] + max(0.0, free["alone_seconds"] - messages)
        yield line | {
            "predicted_with_copying_seconds": expected,
            "in_step_to_predicted_with_copying": line["in_step_seconds"] / expected,
            "alone_to_predicted_with_copying": line["alone_seconds"] / expected,
        }


def _print_measured(
    console: measure.Console,
    table: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    options: Mapping[str, Any],
    link: cost_model.Link | None,
) -> None:
    size, reduced = options["image_size"], facts["reduced_bytes"] / 1e6
    console.print(
        f"{options['model']}, {facts['parameters']:,} parameters, {size}x{size}, {options['batch_size']} images per "
        f"device, {options['precision']}; a reduction of {reduced:.2f} MB in float32.\n"
        "1 device has one core, 2 devices or processes have two; efficiency: relative to twice 1 device.\n"
        "Deterministic: config.deterministic_threads is the number of cores of each process."
    )
    columns = ("images/s", "median", "min", "max", "efficiency", "predicted", "reduction", "to fast", "cores busy")
    lines = [
        (
            line["label"],
            *(f"{line[name]:.0f}" for name in ("median", "min", "max")),
            _as_tenths(line["efficiency"] if line["devices"] > 1 else None),
            _as_tenths(line["predicted_efficiency"]),
            _as_tenths(line["reduction_share"]),
            _as_tenths(line["to_fast"] if "deterministic" in line["peer"] else None),
            f"{line['busy_cores']:.2f}",
        )
        for line in table
        if line["peer"] not in _REDUCTIONS
    ]
    measure.print_table(console, columns, lines)
    console.print("Reduction: share of the step, compared with the same step without it in the same round.")
    if link:
        alone = cost_model.all_reduce_seconds(2, facts["reduced_bytes"], link)
        console.print(
            f"Predicted: the step of one device plus the reduction timed alone, {1e3 * alone:.1f} ms, or "
            f"{1e6 * link.latency_seconds:.0f} us per message and {link.bytes_per_second / 1e9:.2f} GB/s."
        )


def _print_links(console: measure.Console, links: Sequence[Mapping[str, Any]]) -> None:
    if not links:
        return
    console.print("\nThe cost model on rate-limited links, two processes; milliseconds per reduction:")
    columns = ("Mbit/s", "latency, us", "predicted", "in the step", "to predicted", "alone", "to predicted")
    columns += ("with copying", "alone to that")
    lines = []
    for line in links:
        limit, expected = line["megabits_per_second"], line.get("predicted_seconds")
        lines.append(
            (
                "no limit" if limit is None else f"{limit:g}",
                f"{1e6 * line['latency_seconds']:.0f}",
                "" if expected is None else f"{1e3 * expected:.1f}",
                f"{1e3 * line['in_step_seconds']:.1f}",
                measure.as_times(line.get("in_step_to_predicted")),
                f"{1e3 * line['alone_seconds']:.1f}",
                measure.as_times(line.get("alone_to_predicted")),
                "" if expected is None else f"{1e3 * line['predicted_with_copying_seconds']:.1f}",
                measure.as_times(line.get("alone_to_predicted_with_copying")),
            )
        )
    measure.print_table(console, columns, lines)
    console.print("Copying: time of the reduction alone without a rate limit, minus its messages.")


def _print_predicted(
    console: measure.Console,
    rows: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    assumptions: Mapping[str, Any],
) -> None:
    batch_size, rate = assumptions["gpu_batch_size"], assumptions["gpu_images_per_second"]
    console.print(
        f"\nA prediction, not a measurement: efficiency of GPUs with one host each, {batch_size} images in "
        f"{1e3 * batch_size / rate:.1f} ms per step\n(assumed: {rate:,.0f} images/s), {facts['parameters']:,} "
        f"parameters, {assumptions['gpu_latency']:g} us per message (assumed), no overlap."
    )
    columns = ["all-reduce", *(f"{gigabits} Gbit/s" for gigabits in _GIGABITS)]
    lines = []
    for devices in _GPUS:
        for precision in _BYTES:
            for shape in cost_model.SHAPES:
                key = (devices, precision, shape)
                own = [row for row in rows if (row["devices"], row["precision"], row["shape"]) == key]
                cells = [f"{_as_tenths(row['efficiency'])} ({1e3 * row['reduction_seconds']:5.1f} ms)" for row in own]
                lines.append((f"{devices} GPUs, {precision}, {shape}", *cells))
    measure.print_table(console, columns, lines)


def _as_tenths(ratio: float | None) -> str:
    return "" if ratio is None else f"{100 * ratio:.1f} %"
