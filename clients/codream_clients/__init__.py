"""A participant of a CoDream federation.

Learning: `devices`, `datasets`, `partitions`, `models`, `training`, `dreaming`, `acquisition`, `participant`,
`references`; each is plain computation, without sockets, and deterministic from its seeds.
Nothing is imported here, so that a module without tensors does not pay for torch.
"""
