"""The service: pictures upscaled over HTTP, by many users at once.

A request's way: `guard` (key, size and pace of the body) → `api` (routes) → `workers` (a slot, or
429) → `pictures` (header, decode, model, encode) → `pool` (loaded models) → `backends` (what runs
them). `sessions` remembers who configured what, `stream` does frames over a WebSocket, `metrics`
counts. Nothing is loaded at import.
"""
