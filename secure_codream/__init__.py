"""Secure CoDream: federated learning by exchanging dreams, under secure aggregation.

What a person uses: the command line (`cli`), configuration, provisioning, the demonstration and its report.
"""
