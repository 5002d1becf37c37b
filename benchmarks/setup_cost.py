"""What the set-up of an epoch costs one client, in CPU milliseconds: `python benchmarks/setup_cost.py [--members 10]`.

Real machines in one process; only the first client's calls are timed, from the invitation to the first task. The course
is of one small vector, so that nothing but keys, signatures and seals is left. The primitives alone are timed too.
"""

from __future__ import annotations

import argparse
import os
import secrets
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from codream_protocols import hybrid, keyschedule
from codream_protocols.charter import Aggregation
from codream_protocols.client import Compute, Send
from codream_protocols.courses.sums import Sums
from codream_protocols.messages import Hello, decode_to_client, encode_message
from codream_protocols.server import SendTo
from codream_protocols.specs import Block
from secure_codream.simulation.in_process import Simulation


class Ones:
    def compute(self, task, spec):
        return {block.name: np.ones(block.length) for block in spec.blocks}

    def learn(self, number, publication):
        pass


def set_up(members: int, mode: str) -> float:
    """CPU milliseconds of the first client."""
    course = Sums({"sum": (Block("numbers", 8, 1.0),)})
    simulation = Simulation(course, [Ones() for _ in range(members)], aggregation=Aggregation(mode=mode))
    server, spent = simulation.server, 0.0
    queue = []
    for number, client in enumerate(simulation.clients):
        queue += server.hello(number, client.hello())
    queue += server.open_epoch(server.cohort())
    while queue:
        effect = queue.pop(0)
        if not isinstance(effect, SendTo):
            continue
        message = decode_to_client(encode_message(effect.message))
        began = time.process_time()
        answers = simulation.clients[effect.member].receive(message, effect.frames)
        if effect.member == 0:
            spent += time.process_time() - began
        for answer in answers:
            if isinstance(answer, Send) and not isinstance(answer.message, Hello):
                queue += server.receive(effect.member, answer.message, answer.frames)
            elif isinstance(answer, Compute) and effect.member == 0:
                return 1000 * spent
    raise RuntimeError("the set-up did not end")


def primitives(members: int) -> float:
    """CPU milliseconds of the primitives that a client of lockstep cannot do without."""
    signer = Ed25519PrivateKey.generate()
    public, message = signer.public_key(), secrets.token_bytes(1300)
    signature, own = signer.sign(message), secrets.token_bytes(32)
    peer = keyschedule.public_key(secrets.token_bytes(32))
    other = hybrid.KemKey(secrets.token_bytes(64))
    began = time.process_time()
    key = hybrid.KemKey(secrets.token_bytes(64))
    kem = key.public
    for _ in range(members - 1):
        keyschedule.agree(own, peer)
        _, ciphertext = hybrid.encapsulate(other.public)
        other.decapsulate(ciphertext)
        hybrid.encapsulate(kem)
        public.verify(signature, message)
        public.verify(signature, message)
        signer.sign(message)
    return 1000 * (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--members", type=int, default=10)
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()
    for mode in ("lockstep", "resilient"):
        found = sorted(set_up(arguments.members, mode) for _ in range(arguments.turns))
        print(
            f"{mode}, n = {arguments.members}: {statistics.median(found):.2f} ms a client and epoch "
            f"(least {found[0]:.2f})"
        )
    found = sorted(primitives(arguments.members) for _ in range(arguments.turns))
    print(f"primitives of lockstep alone: {statistics.median(found):.2f} ms (least {found[0]:.2f})")


if __name__ == "__main__":
    main()
