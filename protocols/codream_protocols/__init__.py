"""The protocol of Secure CoDream, pure: no socket, no tensor library, no clock, no file but `durable`'s.

Read in this order: `charter` (what an epoch is), `client` (a participant's machine), `server` (the aggregator's), then
the layers that they stand on: `messages` (bytes and types), `keyschedule` (who knows which key), `shamir`, `masks`,
`ring` and `packing` (numbers). Specification and argument: docs/protocol.md.
"""
