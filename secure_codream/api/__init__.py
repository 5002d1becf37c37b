"""The public API: take part with your own model and data, run the aggregator, or run everything in one process.

    from secure_codream import Client

    client = Client("federation/clients/alice", model=model, train=(images, labels), test=(images, labels))
    client.run(on_round=print)

`run` works in a script, in a thread and in a notebook, whose event loop it leaves alone; `await client.arun()` lets
that loop go on. Images are bytes (N, H, W) or (N, H, W, C), or standardised floats (N, C, H, W); labels (N,) integers
from 0 to K - 1, or words; the federation's `[task]` says C, H, W, K and the words. Arrays go through the same gate as
files (`codream_clients.data`): they are understood, or refused with the reason. `LabelledImages` with a `scale` let the
model's file say how pixels are standardised. `open_model` opens that file:

    probabilities = open_model("federation/clients/alice").probabilities_of_pixels(pixels)  # uint8 (N, H, W, C)

`Server` needs the base install alone.
"""
