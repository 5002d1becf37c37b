"""A participant of a CoDream federation.

Data: `data_sources` finds them by name, path or function (`image_sets`, `npz_files`, `image_folders`, `own_data`), as
`pixels` and then `datasets`; `partitions` deals them out, `augmentation` varies them.
Models: `models` builds them by name (`model_names`, `layers`, `networks`) or by a user's function (`own_parts`).
Learning: `devices`, `training`, `dreaming`, `acquisition`, `participant`, `references`; each is plain computation,
without sockets, and deterministic from its seeds.
Answers: `tasks` (CoDream, with the adaptive `student`), `generator_tasks` (CoDream-fast), `parameter_tasks` (FedAvg,
FedProx, MOON, SCAFFOLD; `local_work`, `layouts`) and `function_learner` (sums) are the learners of the courses.
On the network: `runner`, with `journal` (what outlasts a crash) and `words` (text from the network).
Nothing is imported here, so that a module without tensors does not pay for torch.
"""
