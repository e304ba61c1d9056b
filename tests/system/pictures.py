"""A modality for the kill test: short CT studies of grey pictures, each picture another one, sent for ever.

Appends `<SOP Instance UID> <SHA-256 of the data set>` to `--acks` for every 0x0000. After a failure it begins again.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "wire"))

from senders import Aborted, Rejected, Sender, data_set, new_uid

ROWS, COLUMNS = 128, 512


def picture(rng):
    """Blocks under a little noise, 16 bits. The bundle, enrolled on 90 such, suspects about every second study of 6."""
    blocks = np.kron(rng.random((24, 24)), np.ones((ROWS // 24 + 1, COLUMNS // 24 + 1)))[:ROWS, :COLUMNS]
    return np.rint(np.clip(blocks + rng.normal(0, 0.02, blocks.shape), 0, 1) * 65535).astype("<u2").tobytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--acks", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--per-study", type=int, default=6)
    parser.add_argument("--pause-s", type=float, default=0.25, help="after every instance, as a modality has one")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with options.acks.open("a") as acks:
        while True:
            try:
                with Sender(options.port, called="DICOMGUARD") as sender:
                    study = new_uid()
                    for _ in range(options.per_study):
                        uid = new_uid()
                        data = data_set(uid, study, pixels=picture(rng))
                        if sender.store(uid, data).status == 0:
                            print(uid, hashlib.sha256(data).hexdigest(), file=acks, flush=True)
                        time.sleep(options.pause_s)
                    sender.release()
            except (OSError, Aborted, Rejected):
                time.sleep(0.05)


if __name__ == "__main__":
    main()
