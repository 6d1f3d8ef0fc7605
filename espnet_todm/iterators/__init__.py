"""Training batches from lhotse's cuts: an alternative to ESPnet's tables whose memory does not grow with the corpus."""
