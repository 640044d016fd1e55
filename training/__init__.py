"""Trains the default model: a small autoencoder, then a small latent diffusion UNet made for style injection."""
