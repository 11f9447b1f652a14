"""Converts a further split of a dataset, and kills itself after some renames into the dataset.

python -m tests.input_pipeline.killed_publication IMAGES DATA RENAMES
"""

import os
import signal
import sys
from pathlib import Path

from convoy.input_pipeline.convert.convert import Options, convert


def main(images: Path, data: Path, renames: int) -> None:
    """Args: images: folder. data: dataset directory. renames: how many succeed."""
    replace, done = os.replace, []

    def counted(source: Path, target: Path) -> None:
        if Path(target).parent == data and Path(source).parent != data:
            if len(done) == renames:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(target)
        replace(source, target)

    os.replace = counted
    convert(Options(images, data, split="test", shards=2, workers=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
