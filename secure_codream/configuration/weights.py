"""Where a model's first weights come from: no epsilon covers the images that they were trained on, so it is asked."""

from __future__ import annotations

from secure_codream.configuration.client import ClientConfig
from secure_codream.configuration.federation import FederationConfig
from secure_codream.configuration.reading import ConfigError

BUILT_IN = "drawn at random by this program"
DECLARED = {
    "random": "drawn at random, as this party says",
    "public": "of a training on public images, as this party says",
    "charged": "of a training on its own records that the same ledger was charged for, as this party says",
}


def first_weights(client: ClientConfig, federation: FederationConfig, *, given: bool) -> str:
    """Where they come from, in words.

    Args:
        client: its `weights` says it of a model of its own.
        federation: where records are private, it must.
        given: whether a script gives the model.

    Raises:
        ConfigError: records are private, the model is nobody's here, and `weights` says nothing.
    """
    own = next((name for name in (client.model, federation.common_model or "") if ":" in name), None)
    if own is None and not given:
        return BUILT_IN
    if client.weights is not None:
        return DECLARED[client.weights]
    if not federation.record_private:
        return ""
    raise ConfigError(
        f"model: found {'a model of a script' if given else own} in a federation that protects records, and no word of "
        "where its first weights come from: no epsilon covers the images that they were trained on; weights in "
        "client.toml is needed: 'random'; 'public', of images that protect nobody; or 'charged', of these images, by a "
        "training that their ledger was charged for. Weights of other private images are not allowed"
    )
