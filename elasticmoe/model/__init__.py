"""The network: a DeepSeek-V3-style Mixture-of-Experts transformer, cut into blocks and stages."""
