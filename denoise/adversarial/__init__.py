"""Adversarial training: region masks, losses and settings of UniPET and of a conditional GAN."""
