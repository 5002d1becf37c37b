"""An attack of your own: secure-codream threats --attack own_attack:GuessFromTraffic --only own

The class has the attributes of `secure_codream.threats.laboratory.attack.Attack`; `run` plays it once against the real
machines, with the defences that it is told stand. The suite runs it twice, with all of them and without its own, and
judges.
"""

import numpy as np

from codream_protocols.messages import MaskedInput
from secure_codream.threats.laboratory import adversary
from secure_codream.threats.laboratory.attack import Attack, Evidence
from secure_codream.threats.laboratory.defences import Defences
from secure_codream.threats.laboratory.laboratory import Laboratory


class GuessFromTraffic(Attack):
    """The simplest server: it takes what goes over the wire for what it is."""

    name = "guess-from-traffic"
    adversary = "curious server"
    goal = "Read a client's input off its message."
    paper = ""
    promises = ("P1",)
    defences = ("masks",)  # a rule of the client, a switch of `switches.py`, or of a `SWITCHES` in this module
    quick = True

    def run(self, defences: Defences, laboratory: Laboratory) -> Evidence:
        """Correlate the masked input of every client with its input."""
        federation = laboratory.federation(defences).masked()
        senders = [item.member for item in federation.sent if item.kind is MaskedInput]
        seen = np.concatenate([adversary.masked_input(federation, 0, member) for member in senders])
        true = np.concatenate([federation.vectors[0, member] for member in senders])
        correlation = abs(float(np.corrcoef(seen.astype(float), true.astype(float))[0, 1]))
        return Evidence(
            measure="correlation of what was seen with the inputs",
            value=correlation,
            success=0.5,
            learned=f"a correlation of {correlation:.2f}",
        )
