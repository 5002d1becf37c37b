"""A client inside a training script of your own: python examples/client_in_a_script.py federation/clients/alice

The folder comes from `secure-codream provision`; the aggregator runs elsewhere.
"""

import sys

import own_parts

from secure_codream import Client

train, test = own_parts.load()
model = own_parts.build(channels=1, size=8, classes=10)
Client(sys.argv[1], model=model, train=train, test=test).run(address=sys.argv[2] if len(sys.argv) > 2 else None)
print("The model has learnt from", sys.argv[1])
