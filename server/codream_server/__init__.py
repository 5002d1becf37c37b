"""The aggregator: it routes, adds, unmasks sums and keeps the public record, and is trusted with nothing.

It needs no tensor library.

`runner` is the ZeroMQ side; `inbound` bounds what the network may send, `peers` what waits for whom, `patience` time as
it is counted, `events` what the operator is told. `record_folder` is the record on disk, `feddream` keeps the dreams of
what is certified, `privacy_statement` says what may be said.
"""
