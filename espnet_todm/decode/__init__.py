"""From a model's output to text: searches, shallow fusion, and decoding of data sets."""
