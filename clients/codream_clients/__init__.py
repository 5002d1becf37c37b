"""A participant of a CoDream federation.

Data: `data_sources` finds them by name, path or function (`image_sets`, `npz_files`, `image_folders`, `own_data`), as
`pixels` and then `datasets`; `partitions` deals them out, `augmentation` varies them.
Models: `models` builds them by name (`model_names`, `layers`, `networks`) or by a user's function (`own_parts`).
Learning: `devices`, `training`, `dreaming`, `acquisition`, `participant`, `references`; each is plain computation,
without sockets, and deterministic from its seeds.
Nothing is imported here, so that a module without tensors does not pay for torch.
"""
