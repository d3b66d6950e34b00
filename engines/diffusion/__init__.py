"""ResShift: pictures enlarged by diffusion, in seconds or minutes each, never live.

`unet` and `autoencoder` are its nets, `schedule` its numbers, `sampler` the way from noise to a
latent, `chunks` big pictures in pieces; `resshift` puts them together behind `engines.offline`.
Everything here was written from the papers and from what the published code defines; none of
that code, whose licence forbids commercial use, is in it.
"""
