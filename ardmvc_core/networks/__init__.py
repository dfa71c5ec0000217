"""The parts that models are made of: encoders, decoders, fusion and heads, k-means."""

from ardmvc_core.networks.decoders import build_decoder, dense_decoder
from ardmvc_core.networks.encoders import build_encoders
from ardmvc_core.networks.heads import ClusteringHead, WeightedMean
from ardmvc_core.networks.kmeans import KMeansHead

__all__ = ["ClusteringHead", "KMeansHead", "WeightedMean", "build_decoder", "build_encoders", "dense_decoder"]
