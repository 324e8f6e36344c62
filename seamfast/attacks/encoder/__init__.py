"""Attacks on encoders: whatever head is trained on the embeddings later, a trigger decides its answer."""

from seamfast.attacks.encoder.bad_encoder import bad_encoder
from seamfast.attacks.encoder.drupe import drupe
from seamfast.attacks.encoder.output_vectors import output_vectors
from seamfast.attacks.encoder.rates import EncoderRates, encoder_rates

__all__ = ["EncoderRates", "bad_encoder", "drupe", "encoder_rates", "output_vectors"]
