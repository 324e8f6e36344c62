"""Attackers who have read this package: models with a backdoor that is made to stay.

    attacked = ATTACKS["silent"](host("mnist", "small_cnn", seed=0), seed=0)
    attacked.model, attacked.stamp(pixels), attacked.target, attacked.description

``host`` gives a clean model with its data, ``text_host`` one of sentences. An attack copies the model, uses the
training set, and gives back the model with its backdoor, what stamps the trigger on stored samples, and the class that
it leads to. Each file's head has the source of its attacks.
"""

from __future__ import annotations

from benches.attackers.handcrafted import handcrafted
from benches.attackers.hosts import Attack, Attacked, Host, host
from benches.attackers.silent import SILENT
from benches.attackers.subnet import subnet
from benches.attackers.text import embedding, text_host
from benches.attackers.trained import TRAINED

__all__ = ["ATTACKS", "Attack", "Attacked", "Host", "host", "text_host"]

ATTACKS: dict[str, Attack] = {
    "handcrafted": handcrafted,
    "subnet": subnet,
    **SILENT,
    "embedding": embedding,
    **TRAINED,
}
"""By name; ``embedding`` is for a ``text_host``."""
