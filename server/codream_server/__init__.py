"""The aggregator: it routes, adds, unmasks sums and steps the dreams, and is trusted with nothing.

It needs no tensor library.

`runner` is the ZeroMQ side, `coordinator` decides what is asked and what a sum means, `optimisers` step the dreams,
`feddream` keeps them, `student` (optional, needs torch) learns from them alone.
"""
