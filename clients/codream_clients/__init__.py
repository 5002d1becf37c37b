"""A participant of a CoDream federation, in rooms that import downwards only.

    runner, journal            on the network, and what outlasts a crash
    *_learner                  what answers the tasks of each course, and learns what is certified
    privacy/                   record-level differential privacy: plan, ledger, mechanisms
    learning/                  training, dreaming, distillation; plain computation, deterministic from its seeds
    models/                    networks by name, and the layout of their parameters
    data/                      images: sources, partitions, variations
    masking/                   vectors masked on the GPU that they lie on
    own_parts, devices, durable, words    a user's functions, devices, files that outlast a crash, text from the network

Nothing is imported here, so that a module without tensors does not pay for torch.
"""
